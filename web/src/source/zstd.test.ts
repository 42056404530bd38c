import { describe, expect, it } from "vitest";
import theirs from "../../node_modules/numcodecs/dist/zstd.js";
import zstd, { checksum } from "./zstd";

/** Bytes between order and noise. */
const bytes = (count: number): Uint8Array =>
  Uint8Array.from({ length: count }, (_, at) => (at * at * 7 + (at % 5 ? at >> 3 : at)) & 255);

/** XXH64 by BigInt, as its specification has it; the low 32 bits. */
function reference(input: Uint8Array): number {
  const [one, two, three, four, five] = [
    0x9e3779b185ebca87n,
    0xc2b2ae3d27d4eb4fn,
    0x165667b19e3779f9n,
    0x85ebca77c2b2ae63n,
    0x27d4eb2f165667c5n,
  ] as [bigint, bigint, bigint, bigint, bigint];
  const cut = (x: bigint): bigint => BigInt.asUintN(64, x);
  const turn = (x: bigint, by: bigint): bigint => cut((x << by) | (x >> (64n - by)));
  const round = (lane: bigint, x: bigint): bigint => cut(turn(cut(lane + x * two), 31n) * one);
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  let [at, hash] = [0, five];
  if (input.length >= 32) {
    const lanes = [one + two, two, 0n, -one].map(cut);
    for (; at + 32 <= input.length; at += 32) {
      for (let lane = 0; lane < 4; lane++)
        lanes[lane] = round(lanes[lane] as bigint, view.getBigUint64(at + 8 * lane, true));
    }
    hash = cut(lanes.reduce((total, lane, i) => total + turn(lane, [1n, 7n, 12n, 18n][i] as bigint), 0n));
    for (const lane of lanes) hash = cut((hash ^ round(0n, lane)) * one + four);
  }
  hash = cut(hash + BigInt(input.length));
  for (; at + 8 <= input.length; at += 8)
    hash = cut(turn(hash ^ round(0n, view.getBigUint64(at, true)), 27n) * one + four);
  if (at + 4 <= input.length) {
    hash = cut(turn(hash ^ cut(BigInt(view.getUint32(at, true)) * one), 23n) * two + three);
    at += 4;
  }
  for (; at < input.length; at++) hash = cut(turn(hash ^ cut(BigInt(input[at] as number) * five), 11n) * one);
  hash = cut((hash ^ (hash >> 33n)) * two);
  hash = cut((hash ^ (hash >> 29n)) * three);
  return Number((hash ^ (hash >> 32n)) & 0xffffffffn);
}

describe("a checksum", () => {
  it.each([0, 1, 3, 4, 7, 8, 12, 31, 32, 33, 64, 100, 1000, 4099])("of %i bytes is that of XXH64", (count) => {
    expect(checksum(bytes(count))).toBe(reference(bytes(count)));
  });

  it("of nothing is the published one", () => expect(checksum(new Uint8Array())).toBe(0x51d8e999));
});

describe("a chunk", () => {
  const codec = zstd.fromConfig();

  it.each([1, 9, 19])("is unpacked, packed at level %i", async (level) => {
    for (const count of [1, 100, 70_000, 300_000]) {
      const frame = await theirs.fromConfig({ id: "zstd", level }).encode(bytes(count));
      expect(Buffer.compare(codec.decode(frame), bytes(count))).toBe(0);
    }
  });

  it("with a checksum that differs is refused", async () => {
    const frame = await theirs.fromConfig({ id: "zstd", level: 1 }).encode(bytes(1000));
    const checked = new Uint8Array(frame.length + 4);
    checked.set(frame);
    checked[4] = (frame[4] as number) | 4;
    const last = new DataView(checked.buffer, frame.length);
    last.setUint32(0, checksum(bytes(1000)), true);
    expect(codec.decode(checked)).toEqual(bytes(1000));
    last.setUint32(0, checksum(bytes(1000)) ^ 1, true);
    expect(() => codec.decode(checked)).toThrow("not what was written");
  });
});
