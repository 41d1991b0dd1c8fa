// A client of `qttdm serve` for browsers and Node >= 22 (20: --experimental-websocket, or `npm install ws`), in JSON.
//   node client.mjs [URL [SEED]]    reads an observation a line, a list of numbers, and writes an action for each.
// Its token, where there is one, is in the environment: QTTDM_TOKEN; QTTDM_PLAIN_TEXT=1 lets it go to another machine
// without TLS. docs/protocol.md, version 3.

/** Connect and begin an episode; returns `act(observations)`: the action, in the task's own units. One call at a time. */
export async function connect(url, seed, token, plainText = false) {
  const { protocol, hostname } = new URL(url);
  if (token && !plainText && protocol !== "wss:" && !/^(localhost|127(\.\d+){3}|\[::1\])$/.test(hostname))
    throw new Error(`the token would go to ${hostname} unencrypted; want wss://, or to be told that this is meant`);
  const Socket = globalThis.WebSocket ?? (await import("ws")).default;
  const socket = new Socket(url, ["qttdm.3", ...(token ? [`token.${token}`] : [])]);
  const wrong = (what) => new Error(`${url}: ${what}`);
  const next = () => {
    let timer;
    return new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onmessage = ({ data }) => resolve(data);
      socket.onclose = socket.onerror = () => reject(wrong("no service there, or it refused or hung up"));
      if (socket.readyState > 1) socket.onclose();
      timer = setTimeout(() => (socket.close(), reject(wrong("no answer within 30 s"))), 30_000);
    }).finally(() => clearTimeout(timer));
  };
  const accepted = (answer) => {
    if (answer?.error) throw new Error(`${answer.error.code}: ${answer.error.message}`);
    return answer;
  };
  const read = (data) => {
    try { return JSON.parse(data); } catch { throw wrong("an answer that is no JSON"); }
  };
  const call = (name, fields) => (socket.send(JSON.stringify({ call: name, ...fields })), next().then(read).then(accepted));
  await next();
  const episode = (await call("begin", { seeds: [seed] }))?.episodes?.[0];
  if (!Number.isInteger(episode)) throw wrong("an answer without an episode");
  let step = 0;
  return async (observations) => {
    const answer = await call("act", { requests: [{ episode, step, observations }] });
    const action = accepted(answer?.results?.[0])?.action;
    if (!Array.isArray(action) || !action.every(Number.isFinite)) throw wrong("an answer without an action");
    step += 1;
    return action;
  };
}

if (globalThis.process?.argv[1]?.endsWith("client.mjs")) {
  const [url = "ws://127.0.0.1:7747", seed = "0"] = process.argv.slice(2);
  const fail = (error) => (console.error(error.message), process.exit(1));
  const act = await connect(url, Number(seed), process.env.QTTDM_TOKEN, process.env.QTTDM_PLAIN_TEXT === "1").catch(fail);
  for await (const line of (await import("node:readline")).createInterface({ input: process.stdin }))
    console.log(JSON.stringify(await act(JSON.parse(line)).catch(fail)));
  process.exit();
}
