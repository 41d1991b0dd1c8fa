"""QT-TDM: the one package that is installed. Its folders are links to those at the top of the repository."""
