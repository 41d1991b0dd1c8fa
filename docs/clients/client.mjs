// A client of `qttdm serve` for browsers and Node >= 22 (20: --experimental-websocket, or `npm install ws`), in JSON.
//   node client.mjs [URL [SEED]]    reads an observation a line, a list of numbers, and writes an action for each.
// Its token, where there is one, is in the environment: QTTDM_TOKEN. docs/protocol.md, version 3.

/** Connect and begin an episode; returns `act(observations)`: the action, in the task's own units. One call at a time. */
export async function connect(url, seed, token) {
  const Socket = globalThis.WebSocket ?? (await import("ws")).default;
  const socket = new Socket(url, ["qttdm.3", ...(token ? [`token.${token}`] : [])]);
  const next = () => new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onmessage = ({ data }) => resolve(JSON.parse(data));
    socket.onclose = socket.onerror = () => reject(new Error(`${url}: no service there, or it refused or hung up`));
    if (socket.readyState > 1) socket.onclose();
  });
  const accepted = ({ error, ...answer }) => {
    if (error) throw new Error(`${error.code}: ${error.message}`);
    return answer;
  };
  const call = (name, fields) => (socket.send(JSON.stringify({ call: name, ...fields })), next().then(accepted));
  await next();
  const { episodes: [episode] } = await call("begin", { seeds: [seed] });
  let step = 0;
  return async (observations) => {
    const { results: [result] } = await call("act", { requests: [{ episode, step, observations }] });
    const { action } = accepted(result);
    step += 1;
    return action;
  };
}

if (globalThis.process?.argv[1]?.endsWith("client.mjs")) {
  const [url = "ws://127.0.0.1:7747", seed = "0"] = process.argv.slice(2);
  const fail = (error) => (console.error(error.message), process.exit(1));
  const act = await connect(url, Number(seed), process.env.QTTDM_TOKEN).catch(fail);
  for await (const line of (await import("node:readline")).createInterface({ input: process.stdin }))
    console.log(JSON.stringify(await act(JSON.parse(line)).catch(fail)));
  process.exit();
}
