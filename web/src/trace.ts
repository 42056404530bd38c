/**
 * Traces in the browser: the same store that `saccade.open_trace` reads (docs/trace-format.md), through zarrita.
 *
 * Nothing is read before it is asked for, then chunk by chunk; chunks that were read are kept as long as there is room.
 */
import * as zarr from "zarrita";
import zstd from "./source/zstd";

export const VERSION = 1;

zarr.registry.set("zstd", () => zstd as never);

/** Bytes of unpacked chunks that are kept: a tab stays small, and a pattern is swept without reading anything twice. */
const ROOM = 128 << 20;

/** The metadata of a whole trace, as far as the page needs them. */
export interface TraceMetadata {
  version: number;
  complete: boolean;
  entries: number;
  model: string;
  name: string;
  keep: "statistics" | "qk" | "qkv";
  layers: string[] | null;
}

/** One attention call of an entry; see the table in docs/trace-format.md. */
export interface Site {
  name: string;
  stack: number;
  row: number;
  scale: number;
  softcap: number | null;
  mask: number | null;
  bias: number | null;
  queries: number | null;
  keys: number | null;
  hidden: number | null;
  hidden_row: number | null;
}

/** Calls of one shape. */
export interface Stack {
  sites: string[];
  batch: number;
  heads: number;
  key_heads: number;
  queries: number;
  keys: number;
  width: number;
  value_width: number;
  head_numbers: number[];
  statistics: { field: string; numbers: number[]; grouped: boolean }[];
  kept: string[];
  sink_batch: number | null;
}

export interface MaskForm {
  kind: "intervals" | "dense";
  batch: number;
  heads: number;
  runs: number;
}

export interface BiasForm {
  kind: "dense" | "alibi" | "relative";
  numbers: number[];
  shape: number[];
}

/** The metadata of one forward of the model. */
export interface EntryMetadata {
  index: number;
  complete: boolean;
  forward: string;
  sites: Site[];
  stacks: Stack[];
  sequences: { name: string; length: number }[];
  masks: MaskForm[];
  biases: BiasForm[];
}

/** Floats of either width. */
export type Floats = Float32Array | Float64Array;

/** What an array holds: numbers of a float16 one are widened, booleans are 0 and 1. */
export type Data = Floats | Int32Array | Uint8Array | BigInt64Array | string[];

/** An array of an entry, or a part of it. */
export interface Values {
  data: Data;
  shape: number[];
}

/** What is wanted of a dimension: one of it (which leaves the dimension out of the shape), a range, or all. */
export type Part = number | readonly [start: number, stop: number] | null;

export type Store = zarr.Readable;
type Stored = zarr.Array<zarr.DataType, Store>;

/** A trace that cannot be read, with the reason. */
export class TraceError extends Error {}

/** An entry of a trace. */
export class Entry {
  private readonly arrays = new Map<string, Promise<Stored>>();

  constructor(
    private readonly group: zarr.Location<Store>,
    readonly metadata: EntryMetadata,
    private readonly chunks: Chunks,
  ) {}

  /** The sites of this entry, by name. */
  get sites(): string[] {
    return this.metadata.sites.map((site) => site.name);
  }

  /** An array by its path within the entry, or a part of it. */
  async read(path: string, index: Part[] = []): Promise<Values> {
    const array = await this.open(path);
    const ranges = array.shape.map((length, dimension): [number, number] => {
      const part = index[dimension] ?? null;
      return part === null ? [0, length] : typeof part === "number" ? [part, part + 1] : [part[0], part[1]];
    });
    const lengths = ranges.map(([start, stop]) => stop - start);
    const out = made(
      array,
      lengths.reduce((a, b) => a * b, 1),
    );
    await Promise.all(
      covering(ranges, array.chunks).map(async (place) =>
        copy(await this.chunks.get(array, place), array.chunks, place, out, ranges),
      ),
    );
    return { data: out, shape: lengths.filter((_, dimension) => typeof index[dimension] !== "number") };
  }

  /** Cells along the dimensions of an array. */
  async shape(path: string): Promise<readonly number[]> {
    return (await this.open(path)).shape;
  }

  private open(path: string): Promise<Stored> {
    let opened = this.arrays.get(path);
    if (!opened) {
      opened = zarr.open.v3(this.group.resolve(path), { kind: "array" });
      this.arrays.set(path, opened);
      opened.catch(() => this.arrays.delete(path));
    }
    return opened;
  }
}

/** A trace. */
export class Trace {
  private readonly chunks = new Chunks(ROOM);

  constructor(
    private readonly root: zarr.Location<Store>,
    readonly metadata: TraceMetadata,
  ) {}

  /** The entry of a number, from 0. */
  async entry(index: number): Promise<Entry> {
    const group = this.root.resolve(`entries/${String(index).padStart(6, "0")}`);
    const metadata = (await member(group)) as unknown as EntryMetadata;
    if (metadata.complete !== true) throw new TraceError(`entry ${index} was not finished`);
    return new Entry(group, metadata, this.chunks);
  }
}

/** The trace in a store. Throws a TraceError if there is none, or one of another version. */
export async function openTrace(store: Store, path: `/${string}` = "/"): Promise<Trace> {
  const root = new zarr.Location(widening(store), path);
  const metadata = (await member(root)) as unknown as TraceMetadata;
  if (metadata.version !== VERSION) {
    throw new TraceError(`the trace is of version ${metadata.version}; this page reads version ${VERSION}`);
  }
  return new Trace(root, metadata);
}

/** What a group of ours says of itself. */
async function member(location: zarr.Location<Store>): Promise<Record<string, unknown>> {
  const group = await zarr.open.v3(location, { kind: "group" }).catch((error: unknown) => {
    throw new TraceError(`there is no trace: ${String(error)}`);
  });
  const said = group.attrs.saccade;
  if (typeof said !== "object" || said === null) throw new TraceError("the store is no trace of Saccade");
  return said as Record<string, unknown>;
}

// ---------------------------------------------------------------------------------------- chunks

/** Unpacked chunks, those that were used last. */
class Chunks {
  private readonly kept = new Map<string, { data: Promise<Data>; bytes: number }>();
  private bytes = 0;

  constructor(private readonly room: number) {}

  get(array: Stored, place: number[]): Promise<Data> {
    const key = `${array.path} ${place}`;
    const known = this.kept.get(key);
    if (known) {
      this.kept.delete(key); // it moves to the end, the youngest
      this.kept.set(key, known);
      return known.data;
    }
    // Without a signal: whoever else waits for the chunk is not to lose it.
    const fresh = { data: array.getChunk(place).then(({ data }) => widened(data as unknown, array)), bytes: 0 };
    this.kept.set(key, fresh);
    fresh.data.then(
      (data) => this.count(fresh, "byteLength" in data ? data.byteLength : 64 * data.length),
      () => this.kept.delete(key),
    );
    return fresh.data;
  }

  private count(chunk: { bytes: number }, bytes: number): void {
    chunk.bytes = bytes;
    this.bytes += bytes;
    for (const [key, { bytes }] of this.kept) {
      if (this.bytes <= this.room) return;
      if (!bytes) continue; // it is being read
      this.kept.delete(key);
      this.bytes -= bytes;
    }
  }
}

/** The chunks that hold a part of an array. */
function covering(ranges: [number, number][], chunk: readonly number[]): number[][] {
  return ranges.reduce<number[][]>(
    (places, [start, stop], dimension) => {
      const size = chunk[dimension] as number;
      const numbers: number[] = [];
      for (let number = Math.floor(start / size); number * size < stop; number++) numbers.push(number);
      return places.flatMap((place) => numbers.map((number) => [...place, number]));
    },
    [[]],
  );
}

/** Copy what a chunk has of a part: runs along the last dimension. */
function copy(from: Data, chunk: readonly number[], place: number[], to: Data, ranges: [number, number][]): void {
  const starts = ranges.map(([start], d) => Math.max(start, (place[d] as number) * (chunk[d] as number)));
  const stops = ranges.map(([, stop], d) => Math.min(stop, ((place[d] as number) + 1) * (chunk[d] as number)));
  const last = ranges.length - 1;
  const step = (dimension: number, source: number, target: number): void => {
    const size = chunk[dimension] as number;
    const [first, stop] = ranges[dimension] as [number, number];
    const [a, b] = [starts[dimension] as number, stops[dimension] as number];
    const here = source * size - (place[dimension] as number) * size;
    const there = target * (stop - first) - first;
    if (dimension < last) for (let i = a; i < b; i++) step(dimension + 1, here + i, there + i);
    else if (Array.isArray(to)) for (let i = a; i < b; i++) to[there + i] = (from as string[])[here + i] as string;
    else (to as Float32Array).set((from as Float32Array).subarray(here + a, here + b), there + a);
  };
  step(0, 0, 0);
}

/** Room for numbers of an array. */
function made(array: Stored, count: number): Data {
  switch (array.dtype) {
    case "string":
      return new Array<string>(count);
    case "bool":
    case "uint8":
      return new Uint8Array(count);
    case "int32":
      return new Int32Array(count);
    case "int64":
      return new BigInt64Array(count);
    case "float64":
      return new Float64Array(count);
    case "float32":
    case "uint16":
      return new Float32Array(count);
    default:
      throw new TraceError(`${array.path} holds ${array.dtype}, which no array of a trace does`);
  }
}

// ---------------------------------------------------------------------------------------- half precision

/**
 * A store whose float16 arrays say that they are uint16. Not every browser has a Float16Array, and zarrita needs one;
 * the bits are the same, and `widened` makes numbers of them. A trace has no arrays that are uint16 by themselves.
 */
function widening(store: Store): Store {
  return {
    async get(key: `/${string}`, options?: { signal?: AbortSignal }) {
      const bytes = await store.get(key, options);
      if (!bytes || !key.endsWith("/zarr.json")) return bytes;
      const text = new TextDecoder().decode(bytes);
      if (!text.includes("float16")) return bytes;
      const said = JSON.parse(text) as Record<string, unknown>;
      if (said.data_type !== "float16") return bytes;
      return new TextEncoder().encode(JSON.stringify({ ...said, data_type: "uint16", fill_value: NOT_A_NUMBER }));
    },
    ...(store.getRange && { getRange: store.getRange.bind(store) as NonNullable<zarr.AsyncReadable["getRange"]> }),
  };
}

const NOT_A_NUMBER = 0x7e00;
let table: Float32Array | null = null;

function widened(data: unknown, array: Stored): Data {
  if (array.dtype === "bool") {
    const { buffer, byteOffset, byteLength } = data as { buffer: ArrayBuffer; byteOffset: number; byteLength: number };
    return new Uint8Array(buffer, byteOffset, byteLength);
  }
  if (array.dtype !== "uint16") return data as Data;
  table ??= Float32Array.from({ length: 1 << 16 }, (_, bits) => half(bits));
  return Float32Array.from(data as Uint16Array, (bits) => (table as Float32Array)[bits] as number);
}

/** The number that 16 bits are by IEEE 754. */
export function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}
