/**
 * One attention call of a recorded text: its queries, keys and all else that makes its weights, read where they are
 * wanted, and its pattern swept block by block.
 */
import type { Data, Entry, Floats, Site, Stack } from "../trace";
import { type Bias, type Block, length, type Mask, Rows } from "./attention";
import type { Head, Range, SiteInfo } from "./contract";

/** Queries and keys of a block: 512 KiB of weights, and 2 MiB of keys where a key has 128 numbers. */
const ROWS = 32;
const COLUMNS = 4096;
/** Milliseconds after which a sweep lets the page breathe. */
const PATIENCE = 12;

/** Called with weights of one query, of all keys from one on; their room is used again for the next ones. */
export type Visit = (weights: Float64Array, query: number, key: number) => void;

/** An attention call of one element of an entry. `info` says how long it is: padding behind the text is no part of it. */
export class Recorded {
  readonly site: Site;
  readonly stack: Stack;

  constructor(
    private readonly entry: Entry,
    private readonly batch: number,
    number: number,
    readonly info: SiteInfo,
  ) {
    this.site = entry.metadata.sites[number] as Site;
    this.stack = entry.metadata.stacks[this.site.stack] as Stack;
  }

  /** The pattern's weights in a rectangle, of one head or the mean of all, a part of a row at a time. */
  async sweep(head: Head, queries: Range, keys: Range, visit: Visit, signal?: AbortSignal): Promise<void> {
    const heads = head === "mean" ? this.info.heads.map((_, place) => place) : [head];
    const room = new Float64Array(ROWS * Math.min(COLUMNS, length(keys)));
    const rows = new Rows(Math.min(COLUMNS, length(keys)));
    let rested = performance.now();
    for (const some of pieces(queries, ROWS)) {
      const lse = await Promise.all(heads.map((one) => this.lse(one, some)));
      for (const others of pieces(keys, COLUMNS)) {
        const weights = room.subarray(0, length(some) * length(others)).fill(0);
        for (const [at, one] of heads.entries()) {
          const block = await this.block(one, some, others);
          for (let row = 0; row < length(some); row++) {
            rows.add(block, row, lse[at]?.[row] as number, 1 / heads.length, weights, row * length(others));
          }
          if (performance.now() - rested > PATIENCE) {
            await new Promise((resolve) => setTimeout(resolve));
            rested = performance.now();
          }
          signal?.throwIfAborted();
        }
        const width = length(others);
        for (let row = 0; row < length(some); row++)
          visit(weights.subarray(row * width, (row + 1) * width), some[0] + row, others[0]);
      }
    }
  }

  /** All that makes the scores of a rectangle of one head. */
  async block(head: number, queries: Range, keys: Range): Promise<Block> {
    const { width } = this.stack;
    const [query, key, bias, mask] = await Promise.all([
      this.row("queries", head, queries),
      this.row("keys", this.keyHead(head), keys),
      this.bias(head, queries, keys),
      this.mask(head, queries, keys),
    ]);
    const { scale, softcap } = this.site;
    return { queries, keys, width, query, key, scale, softcap, bias, mask };
  }

  /** What each row's exponentials are divided by, as a logarithm: as it was kept, else computed. */
  async lse(head: number, queries: Range): Promise<Floats> {
    if (this.stack.statistics.some(({ field }) => field === "lse")) return this.row("lse", head, queries);
    const found = new Float64Array(length(queries)).fill((await this.sink(head)) ?? Number.NEGATIVE_INFINITY);
    const rows = new Rows(COLUMNS);
    for (const keys of pieces([0, this.info.keys], COLUMNS)) {
      const block = await this.block(head, queries, keys);
      found.forEach((soFar, row) => {
        found[row] = rows.lse(block, row, soFar);
      });
    }
    return found;
  }

  /** The logit that takes weight away from all keys; null if the head has none. */
  async sink(head: number): Promise<number | null> {
    if (this.stack.sink_batch === null) return null;
    const batch = this.stack.sink_batch === 1 ? 0 : this.batch;
    const { data } = await this.entry.read(`stacks/${this.site.stack}/sinks`, [this.site.row, batch, head]);
    return (data as Floats)[0] as number;
  }

  /** Values of some keys, (keys, Dv), as a head sees them; null if they were not kept. */
  async values(head: number, keys: Range): Promise<Floats | null> {
    return this.stack.kept.includes("values") ? this.row("values", this.keyHead(head), keys) : null;
  }

  /** What each key received from all queries; null if it was not kept for each head by itself. */
  async received(head: number, keys: Range): Promise<Floats | null> {
    const asked = this.stack.statistics.find(({ field }) => field === "received");
    const plain = asked && !asked.grouped && (await this.shape("received")).length === 4;
    return plain ? this.row("received", head, keys) : null;
  }

  /**
   * The hidden state of a query's token as it entered the layer, or `step` layers on; null if it was not kept, or if the
   * layer's states are of other tokens.
   */
  async state(position: number, step: number): Promise<Floats | null> {
    const { hidden, hidden_row } = this.site;
    if (hidden === null || hidden_row === null) return null;
    const path = `hidden/${hidden}/states`;
    const [, batch, length] = await this.entry.shape(path);
    if (batch !== this.stack.batch || length !== this.stack.queries) return null;
    return (await this.entry.read(path, [hidden_row + step, this.batch, position])).data as Floats;
  }

  /** The place of the first query among the keys; null where they are of another text. */
  async firstQuery(): Promise<number | null> {
    const { queries, keys } = this.site;
    const later = this.stack.keys - this.stack.queries;
    if (queries === keys && later === 0) return 0;
    const { sequences } = this.entry.metadata;
    if (queries === null || keys === null || sequences[queries]?.name !== sequences[keys]?.name || later < 0)
      return null;
    const ids = async (sequence: number, first: number): Promise<BigInt64Array> =>
      (await this.entry.read(`sequences/${sequence}/ids`, [null, [first, first + this.stack.queries]]))
        .data as BigInt64Array;
    const [mine, theirs] = await Promise.all([ids(queries, 0), ids(keys, later)]);
    return mine.every((id, at) => id === theirs[at]) ? later : null;
  }

  /** Cells along queries and keys of each level of the stored map, the finest first. */
  levels(): [number, number][] {
    const found: [number, number][] = this.info.map ? [[...this.info.map.cells]] : [];
    for (let last = found[0]; last; last = found[found.length - 1]) {
      const [queries, keys] = last;
      if (Math.max(queries, keys) <= 16 || [queries, keys].some((side) => side !== 1 && side % 2)) break;
      found.push([Math.max(queries / 2, 1), Math.max(keys / 2, 1)]);
    }
    return found;
  }

  /** A level of the stored map, of one head or the mean of all. */
  async map(head: Head, level: number): Promise<Float32Array> {
    const path = `maps/${this.site.stack}/${this.batch}/s${level}/map`;
    const { data } = await this.entry.read(path, [this.site.row, head === "mean" ? null : head]);
    const cells = data as Floats;
    if (head !== "mean") return Float32Array.from(cells);
    const heads = this.stack.heads;
    const size = cells.length / heads;
    return Float32Array.from({ length: size }, (_, cell) => {
      let sum = 0;
      for (let at = cell; at < cells.length; at += size) sum += cells[at] as number;
      return sum / heads;
    });
  }

  private keyHead(head: number): number {
    return Math.floor(head / (this.stack.heads / this.stack.key_heads));
  }

  private async shape(name: string): Promise<readonly number[]> {
    return this.entry.shape(`stacks/${this.site.stack}/${name}`);
  }

  /** A range of one head's rows of an array of the stack. */
  private async row(name: string, head: number, range: Range): Promise<Floats> {
    const { data } = await this.entry.read(`stacks/${this.site.stack}/${name}`, [
      this.site.row,
      this.batch,
      head,
      range,
    ]);
    return data as Floats;
  }

  private async mask(head: number, queries: Range, keys: Range): Promise<Mask | null> {
    const number = this.site.mask;
    const form = number === null ? undefined : this.entry.metadata.masks[number];
    if (!form) return null;
    const at = [form.batch === 1 ? 0 : this.batch, form.heads === 1 ? 0 : head];
    const read = async <T extends Data>(name: string, columns: Range | null): Promise<T> =>
      (await this.entry.read(`masks/${number}/${name}`, [...at, queries, columns])).data as T;
    if (form.kind === "dense") return { kind: "dense", visible: await read<Uint8Array>("visible", keys) };
    const [starts, stops] = await Promise.all([read<Int32Array>("starts", null), read<Int32Array>("stops", null)]);
    return { kind: "intervals", starts, stops, runs: form.runs };
  }

  private async bias(head: number, queries: Range, keys: Range): Promise<Bias | null> {
    const number = this.site.bias;
    const form = number === null ? undefined : this.entry.metadata.biases[number];
    if (!form) return null;
    const at = [form.shape[0] === 1 ? 0 : this.batch, form.shape[1] === 1 ? 0 : head];
    const read = async (...rest: (Range | null)[]): Promise<Floats> =>
      (await this.entry.read(`biases/${number}/values`, [...at, ...rest])).data as Floats;
    const [offset = 0, first = 0] = form.numbers;
    if (form.kind === "relative") return { kind: "relative", values: await read(null), first, offset };
    if (form.kind === "alibi") {
      return { kind: "alibi", slope: (await read())[0] as number, offset };
    }
    const [rows, columns] = [form.shape[2] === 1 ? 1 : length(queries), form.shape[3] === 1 ? 1 : length(keys)];
    const values = await read(form.shape[2] === 1 ? null : queries, form.shape[3] === 1 ? null : keys);
    return { kind: "dense", values, rows, columns };
  }
}

/** A range cut into pieces of a size, the last one shorter. */
export function pieces([start, stop]: Range, size: number): Range[] {
  return Array.from(
    { length: Math.ceil((stop - start) / size) },
    (_, i): Range => [start + i * size, Math.min(start + (i + 1) * size, stop)],
  );
}
