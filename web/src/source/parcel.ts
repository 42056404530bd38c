/**
 * Parcels: an answer as bytes. Four bytes say how long the JSON behind them is; the arrays that it names follow, each at
 * a multiple of eight bytes from the end of the JSON (which is padded to a multiple of eight, the four bytes included).
 *
 *     u32 little-endian | JSON {"answer": {...}, "arrays": {"weights": {"dtype": "f4", "shape": [..], "offset": 0}}} | arrays
 *
 * The members of `answer` that are arrays are put in their places. `src/saccade/explorer/parcel.py` packs them.
 */
import type { NumberArray, Numbers } from "./contract";

const KINDS = { f4: Float32Array, i4: Int32Array, u1: Uint8Array } as const;

interface Header {
  answer: Record<string, unknown>;
  arrays: Record<string, { dtype: keyof typeof KINDS; shape: number[]; offset: number }>;
}

/** The answer in a parcel. Throws a RangeError if it is cut short, a SyntaxError if its JSON is none. */
export function unpack<T>(bytes: ArrayBuffer): T {
  const length = new DataView(bytes).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length))) as Header;
  const base = Math.ceil((4 + length) / 8) * 8;
  const arrays: Record<string, NumberArray<Numbers>> = {};
  for (const [name, { dtype, shape, offset }] of Object.entries(header.arrays)) {
    const count = shape.reduce((a, b) => a * b, 1);
    arrays[name] = { data: new KINDS[dtype](bytes, base + offset, count), shape };
  }
  return { ...header.answer, ...arrays } as T;
}
