/**
 * Zstandard for zarrita, in place of the codec that it brings: that one is 750 kB, and makes functions of strings, which a
 * strict Content-Security-Policy forbids. Checksums are checked, as a flipped byte can unpack to
 * plausible numbers.
 */
import { decompress } from "fzstd";

/** What a frame's descriptor says: a checksum follows the content (RFC 8878, section 3.1.1.1.1). */
const HAS_CHECKSUM = 4;

export default {
  fromConfig: () => ({
    kind: "bytes_to_bytes",
    encode(): never {
      throw new Error("a page packs nothing");
    },
    decode(frame: Uint8Array): Uint8Array {
      const content = decompress(frame);
      const last = new DataView(frame.buffer, frame.byteOffset + frame.byteLength - 4, 4);
      if ((frame[4] as number) & HAS_CHECKSUM && last.getUint32(0, true) !== checksum(content)) {
        throw new Error("a chunk is not what was written: its checksum differs");
      }
      return content.slice(); // zarrita reads strings from the start of the buffer
    },
  }),
};

/** The primes of XXH64, as high and low halves. */
const P1 = [0x9e3779b1, 0x85ebca87] as const;
const P2 = [0xc2b2ae3d, 0x27d4eb4f] as const;
const P3 = [0x165667b1, 0x9e3779f9] as const;
const P4 = [0x85ebca77, 0xc2b2ae63] as const;
const P5 = [0x27d4eb2f, 0x165667c5] as const;
type Pair = readonly [high: number, low: number];

/**
 * The low half of XXH64 (seed 0) of some bytes: the checksum of a frame. Numbers of 64 bits are pairs in `h` and `l`, which
 * the steps below work on: BigInt would take a second for a few megabytes.
 */
export function checksum(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = bytes.length;
  let at = 0;
  if (count >= 32) {
    const lanes = [sum(P1, P2), P2, [0, 0] as Pair, sum([0, 0], negative(P1))];
    for (; at + 32 <= count; at += 32) {
      for (let lane = 0; lane < 4; lane++) lanes[lane] = round(lanes[lane] as Pair, word(view, at + 8 * lane));
    }
    const turned = lanes.map((lane, i) => rotated(lane, [1, 7, 12, 18][i] as number));
    let hash = turned.reduce(sum);
    for (const lane of lanes) hash = sum(product(xor(hash, round([0, 0], lane)), P1), P4);
    return finish(view, at, sum(hash, [0, count]));
  }
  return finish(view, at, sum(P5, [0, count]));
}

function finish(view: DataView, from: number, start: Pair): number {
  let [at, hash] = [from, start];
  for (; at + 8 <= view.byteLength; at += 8) {
    hash = sum(product(rotated(xor(hash, round([0, 0], word(view, at))), 27), P1), P4);
  }
  if (at + 4 <= view.byteLength) {
    hash = sum(product(rotated(xor(hash, product([0, view.getUint32(at, true)], P1)), 23), P2), P3);
    at += 4;
  }
  for (; at < view.byteLength; at++) hash = product(rotated(xor(hash, product([0, view.getUint8(at)], P5)), 11), P1);
  hash = product(xor(hash, [0, (hash[0] >>> 1) as number]), P2); // of hash >> 33
  hash = product(xor(hash, [hash[0] >>> 29, ((hash[0] << 3) | (hash[1] >>> 29)) >>> 0]), P3);
  return (hash[0] ^ hash[1]) >>> 0;
}

function round(lane: Pair, input: Pair): Pair {
  return product(rotated(sum(lane, product(input, P2)), 31), P1);
}

function word(view: DataView, at: number): Pair {
  return [view.getUint32(at + 4, true), view.getUint32(at, true)];
}

function sum(a: Pair, b: Pair): Pair {
  const low = a[1] + b[1];
  return [(a[0] + b[0] + (low > 0xffffffff ? 1 : 0)) >>> 0, low >>> 0];
}

function negative([high, low]: Pair): Pair {
  return sum([~high >>> 0, ~low >>> 0], [0, 1]);
}

function xor(a: Pair, b: Pair): Pair {
  return [(a[0] ^ b[0]) >>> 0, (a[1] ^ b[1]) >>> 0];
}

/** Rotated to the left, by 1 to 31 bits. */
function rotated([high, low]: Pair, by: number): Pair {
  return [((high << by) | (low >>> (32 - by))) >>> 0, ((low << by) | (high >>> (32 - by))) >>> 0];
}

/** The low 64 bits of a product. */
function product(a: Pair, b: Pair): Pair {
  const [a1, a0, b1, b0] = [a[1] >>> 16, a[1] & 0xffff, b[1] >>> 16, b[1] & 0xffff];
  const first = a1 * b0 + ((a0 * b0) >>> 16);
  const second = a0 * b1 + (first & 0xffff);
  const carried = a1 * b1 + (first >>> 16) + (second >>> 16);
  return [(carried + Math.imul(a[0], b[1]) + Math.imul(a[1], b[0])) >>> 0, Math.imul(a[1], b[1]) >>> 0];
}
