/**
 * Answers of a saved page: what Python said once and for all lies beside the trace as parcels; everything else is
 * computed here, from the trace, by the formula of `attention.ts`. The files are in the page itself, or on a host:
 *
 *     answers/document, answers/tokens/TEXT/SEQUENCE, answers/heads/TEXT, answers/roles/TEXT      parcels
 *     answers/places                                                    JSON: each text's entry and batch element
 *     trace/                                                            the trace (docs/trace-format.md)
 *
 * `src/saccade/explorer/saved.py` writes them.
 */
import { openTrace, type Store, type Trace, TraceError } from "../trace";
import { length } from "./attention";
import {
  type About,
  type Head,
  type HeadsAnswer,
  type Jobs,
  type NumberArray,
  type Questions,
  type Range,
  type Source,
  SourceError,
  type TextInfo,
  type TokensAnswer,
} from "./contract";
import { inside } from "./inside";
import { unpack } from "./parcel";
import { Recorded } from "./recorded";
import { strongest } from "./strongest";
import { margins, tile, window } from "./tiles";

interface Asked {
  text: string;
  site: number;
  head: Head;
  queries?: Range;
  keys?: Range;
}

type Answered<Q extends keyof Questions> = (
  source: StoredSource,
  parameters: Questions[Q][0],
  signal: AbortSignal | undefined,
) => Promise<Questions[Q][1]>;

const QUESTIONS: { [Q in keyof Questions]: Answered<Q> } = {
  document: (source) => source.about(),
  tokens: (source, { text, sequence }) => source.tokens(text, sequence),
  heads: (source, { text }) => source.heads(text),
  tile,
  window,
  margins,
  strongest,
  inside,
};

export class StoredSource implements Source {
  private readonly kept = new Map<string, Promise<unknown>>();

  constructor(private readonly store: Store) {}

  async ask<Q extends keyof Questions>(
    question: Q,
    parameters: Questions[Q][0],
    signal?: AbortSignal,
  ): Promise<Questions[Q][1]> {
    signal?.throwIfAborted();
    try {
      return await QUESTIONS[question](this, parameters, signal);
    } catch (error) {
      throw error instanceof TraceError ? new SourceError(`${error.message}.`) : error;
    }
  }

  async run<J extends keyof Jobs>(job: J, parameters: Jobs[J][0]): Promise<Jobs[J][1]> {
    const { abilities } = await this.about();
    if (job === "roles") {
      const { text } = parameters as Jobs["roles"][0];
      if (await this.file(`answers/roles/${text}`)) return this.parcel(`roles/${text}`);
      throw new SourceError("What each head does was not saved with this page.", "bad");
    }
    const able = abilities[job as keyof typeof abilities];
    throw new SourceError(able === true ? "This page was saved; it can do no more." : able, "bad");
  }

  about(): Promise<About> {
    return this.parcel("document");
  }

  tokens(text: string, sequence: string): Promise<TokensAnswer> {
    return this.parcel(`tokens/${text}/${sequence}`);
  }

  /** All heads at a glance. Of a text that is so short that thumbnails show single weights, they are computed. */
  async heads(text: string): Promise<HeadsAnswer> {
    const known = await this.parcel<Omit<HeadsAnswer, "thumbs"> & Partial<HeadsAnswer>>(`heads/${text}`);
    return { ...known, thumbs: known.thumbs ?? (await this.once(`thumbs ${text}`, () => this.thumbs(text))) };
  }

  private async thumbs(text: string): Promise<NumberArray> {
    const { sites } = await this.text(text);
    const heads = Math.max(...sites.map((site) => site.heads.length));
    const side = Math.max(...sites.flatMap((site) => [site.queries, site.keys]));
    const data = new Float32Array(sites.length * heads * side * side).fill(Number.NaN);
    for (const [number, info] of sites.entries()) {
      const { queries, keys } = info;
      for (const head of info.heads.keys()) {
        const area = { text, site: number, head, queries: [0, queries], keys: [0, keys] } as const;
        const { weights } = await window(this, area);
        const first = (number * heads + head) * side * side;
        for (let at = 0; at < side * side; at++) {
          const [row, column] = [
            Math.floor((Math.floor(at / side) * queries) / side),
            Math.floor(((at % side) * keys) / side),
          ];
          data[first + at] = weights.data[row * keys + column] as number;
        }
      }
    }
    return shaped(data, sites.length, heads, side, side);
  }

  /** An answer that lies there. */
  parcel<T>(name: string): Promise<T> {
    return this.once(name, async () => {
      const bytes = await this.file(`answers/${name}`);
      if (!bytes) throw new SourceError(`This page was saved without ${name}.`, "bad");
      return unpack<T>(bytes.slice().buffer);
    });
  }

  /** A site of a text. */
  async site(text: string, number: number): Promise<Recorded> {
    return this.once(`site ${text} ${number}`, async () => {
      const info = (await this.text(text)).sites[number];
      if (!info) throw new SourceError(`There is no site ${number} in text ${text}.`, "bad");
      const [place, trace] = await Promise.all([this.place(text), this.trace()]);
      const entry = await this.once(`entry ${place[0]}`, () => trace.entry(place[0]));
      return new Recorded(entry, place[1], number, info);
    });
  }

  /** A site that has the head and the ranges that are asked about. */
  async asked(asked: Asked): Promise<Recorded> {
    const site = await this.site(asked.text, asked.site);
    checkHead(site.info.heads.length, asked.head);
    checkRange("queries", site.info.queries, asked.queries);
    checkRange("keys", site.info.keys, asked.keys);
    return site;
  }

  /** The same, of which any weight can be computed. */
  async exact(asked: Asked): Promise<Recorded> {
    const site = await this.asked(asked);
    if (site.info.exact) return site;
    throw new SourceError(
      "The trace has no queries and keys, so no weight can be computed: record with --keep qk.",
      "bad",
    );
  }

  async text(id: string): Promise<TextInfo> {
    const found = (await this.about()).texts.find((text) => text.id === id);
    if (!found) throw new SourceError(`There is no text ${id} in this page.`, "bad");
    return found;
  }

  /** An entry and a batch element. */
  private async place(text: string): Promise<[number, number]> {
    const places = await this.once("places", async () => {
      const bytes = await this.file("answers/places");
      if (!bytes) throw new SourceError("This page was saved without the places of its texts.");
      return JSON.parse(new TextDecoder().decode(bytes)) as Record<string, [number, number]>;
    });
    return places[text] as [number, number];
  }

  trace(): Promise<Trace> {
    return this.once("trace", () => openTrace(this.store, "/trace"));
  }

  private async file(name: string): Promise<Uint8Array | undefined> {
    return this.store.get(`/${name}`);
  }

  private once<T>(name: string, find: () => Promise<T>): Promise<T> {
    const known = this.kept.get(name) as Promise<T> | undefined;
    if (known) return known;
    const found = find();
    this.kept.set(name, found);
    found.catch(() => this.kept.delete(name));
    return found;
  }
}

/** Numbers with their shape. */
export function shaped<T extends Float32Array | Int32Array | Uint8Array>(data: T, ...shape: number[]): NumberArray<T> {
  return { data, shape };
}

function checkHead(count: number, head: Head): void {
  if (head !== "mean" && !(Number.isInteger(head) && head >= 0 && head < count)) {
    throw new SourceError(`There is no head ${head}; there are ${count}, from 0.`, "bad");
  }
}

function checkRange(name: string, count: number, range: Range | undefined): void {
  if (range && !(range[0] >= 0 && range[0] < range[1] && range[1] <= count && length(range) % 1 === 0)) {
    throw new SourceError(`${name} ${range[0]} to ${range[1]}: expected a range of the ${count} there are.`, "bad");
  }
}
