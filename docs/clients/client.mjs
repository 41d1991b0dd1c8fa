// A whole client of `qttdm serve` for Node, with nothing but its standard library: docs/protocol.md, version 1.
//
//   node client.mjs [PORT [HOST [SEED]]]
//
// reads observations from standard input, one JSON list of numbers a line, and writes an action for each, likewise.
// The token, where there is one, comes from the environment: QTTDM_TOKEN.

import net from "node:net";
import readline from "node:readline";
import { pathToFileURL } from "node:url";

const headers = { bin: [0xc4, 0xc5, 0xc6], str: [0xd9, 0xda, 0xdb] };

/** A msgpack value: null, booleans, numbers, strings, Buffers, lists and maps. */
export function pack(value) {
  if (value === null) return Buffer.from([0xc0]);
  if (typeof value === "boolean") return Buffer.from([value ? 0xc3 : 0xc2]);
  if (typeof value === "number") return packNumber(value);
  if (typeof value === "string") return packBytes(Buffer.from(value, "utf8"), headers.str);
  if (Buffer.isBuffer(value)) return packBytes(value, headers.bin);
  if (Array.isArray(value)) return Buffer.concat([packCount(value.length, 0xdd), ...value.map(pack)]);
  const fields = Object.entries(value);
  return Buffer.concat([packCount(fields.length, 0xdf), ...fields.flat().map(pack)]);
}

function packNumber(value) {
  const bytes = Buffer.alloc(9);
  if (Number.isSafeInteger(value) && value >= 0) {
    bytes.writeUInt8(0xcf);
    bytes.writeBigUInt64BE(BigInt(value), 1);
  } else {
    bytes.writeUInt8(0xcb);
    bytes.writeDoubleBE(value, 1);
  }
  return bytes;
}

function packBytes(bytes, [, , with32]) {
  return Buffer.concat([packCount(bytes.length, with32), bytes]);
}

function packCount(count, header) {
  const bytes = Buffer.alloc(5);
  bytes.writeUInt8(header);
  bytes.writeUInt32BE(count, 1);
  return bytes;
}

/** Undoes `pack`, for whatever the server sends. */
export function unpack(bytes) {
  let at = 0;
  const take = (count) => bytes.subarray(at, (at += count));
  const number = (count) => take(count).readUIntBE(0, count);
  const list = (count) => Array.from({ length: count }, next);
  const map = (count) => Object.fromEntries(Array.from({ length: count }, () => [next(), next()]));
  const text = (count) => take(count).toString("utf8");
  function next() {
    const kind = number(1);
    if (kind < 0x80) return kind;
    if (kind < 0x90) return map(kind & 0x0f);
    if (kind < 0xa0) return list(kind & 0x0f);
    if (kind < 0xc0) return text(kind & 0x1f);
    if (kind >= 0xe0) return kind - 0x100;
    switch (kind) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return take(number(1));
      case 0xc5: return take(number(2));
      case 0xc6: return take(number(4));
      case 0xca: return take(4).readFloatBE();
      case 0xcb: return take(8).readDoubleBE();
      case 0xcc: return number(1);
      case 0xcd: return number(2);
      case 0xce: return number(4);
      case 0xcf: return Number(take(8).readBigUInt64BE());
      case 0xd9: return text(number(1));
      case 0xda: return text(number(2));
      case 0xdb: return text(number(4));
      case 0xdc: return list(number(2));
      case 0xdd: return list(number(4));
      case 0xde: return map(number(2));
      case 0xdf: return map(number(4));
      default: throw new Error(`msgpack type ${kind.toString(16)} is not expected`);
    }
  }
  return next();
}

/** One connection; `call` answers in the order of the calls. */
export class Client {
  static async connect(port = 7747, host = "127.0.0.1", token = process.env.QTTDM_TOKEN) {
    const client = new Client();
    await new Promise((resolve, reject) => {
      client.socket = net.connect(port, host, resolve).on("error", reject);
    });
    client.socket.setNoDelay(true).on("data", (bytes) => client.#receive(bytes));
    client.socket.on("close", () => client.#waiting.forEach(({ reject }) => reject(new Error("connection closed"))));
    await client.call("hello", token ? { protocol: 1, token } : { protocol: 1 });
    return client;
  }

  #waiting = [];
  #received = Buffer.alloc(0);

  /** The result of any call of the protocol; an Error with the server's `code` if it is refused. */
  call(name, fields = {}) {
    const payload = pack({ call: name, ...fields });
    const header = Buffer.alloc(4);
    header.writeUInt32BE(payload.length);
    this.socket.write(Buffer.concat([header, payload]));
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  /** The action, a list of N numbers, for an observation, a list of M. */
  async act(episode, step, observation) {
    const bytes = Buffer.alloc(4 * observation.length);
    observation.forEach((value, i) => bytes.writeFloatLE(value, 4 * i));
    const { results: [result] } = await this.call("act", { requests: [{ episode, step, observation: bytes }] });
    if (result.error) throw refused(result.error);
    return Array.from({ length: result.action.length / 4 }, (_, i) => result.action.readFloatLE(4 * i));
  }

  #receive(bytes) {
    this.#received = Buffer.concat([this.#received, bytes]);
    while (this.#received.length >= 4 && this.#received.length >= 4 + this.#received.readUInt32BE()) {
      const end = 4 + this.#received.readUInt32BE();
      const answer = unpack(this.#received.subarray(4, end));
      this.#received = this.#received.subarray(end);
      const { resolve, reject } = this.#waiting.shift();
      answer.error ? reject(refused(answer.error)) : resolve(answer);
    }
  }
}

function refused({ code, message }) {
  return Object.assign(new Error(`${code}: ${message}`), { code });
}

async function main([port = "7747", host = "127.0.0.1", seed = "0"]) {
  const client = await Client.connect(Number(port), host);
  const { episodes: [episode] } = await client.call("begin", { seeds: [Number(seed)] });
  let step = 0;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await client.act(episode, step++, JSON.parse(line))));
  }
  client.socket.end();
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(error.message);
    process.exit(1);
  });
}
