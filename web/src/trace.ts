/**
 * Traces in the browser: the same store that `saccade.open_trace` reads (docs/trace-format.md), through zarrita.
 *
 * Nothing is read before it is asked for; an array comes with the dimensions that its own metadata name.
 */
import * as zarr from "zarrita";

export const VERSION = 1;

/** The metadata of a whole trace, as far as the page needs them. */
export interface TraceMetadata {
  version: number;
  complete: boolean;
  entries: number;
  model: string;
  name: string;
  keep: "statistics" | "qk" | "qkv";
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
  head_numbers: number[];
}

/** The metadata of one forward of the model. */
export interface EntryMetadata {
  index: number;
  complete: boolean;
  forward: string;
  sites: Site[];
  stacks: Stack[];
}

/** An array of an entry, or a part of it. */
export interface Values {
  data: ArrayLike<unknown>;
  shape: number[];
}

type Store = zarr.Readable;
type Index = (number | null)[];

/** A trace that cannot be read, with the reason. */
export class TraceError extends Error {}

/** An entry of a trace. */
export class Entry {
  constructor(
    private readonly group: zarr.Location<Store>,
    readonly metadata: EntryMetadata,
  ) {}

  /** The sites of this entry, by name. */
  get sites(): string[] {
    return this.metadata.sites.map((site) => site.name);
  }

  /** An array by its path within the entry; a number for a dimension takes one of it, null all. */
  async read(path: string, index: Index = []): Promise<Values> {
    const array = await zarr.open.v3(this.group.resolve(path), { kind: "array" });
    const whole: Index = array.shape.map((_, dimension) => index[dimension] ?? null);
    const found = await zarr.get(array, whole);
    if (typeof found !== "object" || found === null || !("data" in found)) return { data: [found], shape: [] };
    return { data: found.data as ArrayLike<unknown>, shape: found.shape };
  }
}

/** A trace. */
export class Trace {
  constructor(
    private readonly root: zarr.Location<Store>,
    readonly metadata: TraceMetadata,
  ) {}

  /** The entry of a number, from 0. */
  async entry(index: number): Promise<Entry> {
    const group = this.root.resolve(`entries/${String(index).padStart(6, "0")}`);
    const metadata = (await member(group)) as unknown as EntryMetadata;
    if (metadata.complete !== true) throw new TraceError(`entry ${index} was not finished`);
    return new Entry(group, metadata);
  }
}

/** The trace in a store. Throws a TraceError if there is none, or one of another version. */
export async function openTrace(store: Store): Promise<Trace> {
  const root = zarr.root(store);
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
  const said = group.attrs["saccade"];
  if (typeof said !== "object" || said === null) throw new TraceError("the store is no trace of Saccade");
  return said as Record<string, unknown>;
}
