/**
 * `Look`: what is being looked at. All of it is in the link, and nothing else decides what a view shows: a link reopens
 * the very view. A view reads and writes these fields; writing one writes the link.
 */
import type { Head, Range } from "./source/contract";

export const VIEWS = ["heads", "pattern", "lines", "inside", "meaning", "cost"] as const;
export type View = (typeof VIEWS)[number];

export const TONES = ["linear", "log", "rank"] as const;
export const PALETTES = ["saccade", "viridis", "cividis", "greys"] as const;

/** A head of a site: both are places, as in a question. */
export interface Place {
  site: number;
  head: Head;
}

/** A rectangle of a pattern, in tokens; fractions where it was zoomed. */
export interface Rectangle {
  queries: Range;
  keys: Range;
}

/** How a field is written in a link. A field that has its first value is left out of it. */
interface Field<T> {
  first: T;
  print: (value: T) => string;
  /** undefined: it is no such value, and the first one stands. */
  parse: (text: string) => T | undefined;
}

const MOST_LISTED = 4096;

const string = (longest = 2000): Field<string> => ({
  first: "",
  print: (value) => value,
  parse: (text) => (text.length <= longest ? text : undefined),
});
const nullable = <T>(field: Field<T>): Field<T | null> => ({
  first: null,
  print: (value) => (value === null ? "" : field.print(value)),
  parse: (text) => (text === "" ? null : field.parse(text)),
});
const count = (first = 0): Field<number> => ({
  first,
  print: String,
  parse: (text) => (/^\d{1,9}$/.test(text) ? Number(text) : undefined),
});
const yes = (first: boolean): Field<boolean> => ({
  first,
  print: (value) => (value ? "1" : "0"),
  parse: (text) => (text === "1" ? true : text === "0" ? false : undefined),
});
const one = <T extends string>(...values: readonly [T, ...T[]] | readonly T[]): Field<T> => ({
  first: values[0] as T,
  print: (value) => value,
  parse: (text) => values.find((value) => value === text),
});
const head = (first: Head): Field<Head> => ({
  first,
  print: String,
  parse: (text) => (text === "mean" ? "mean" : count().parse(text)),
});
const place: Field<Place> = {
  first: { site: 0, head: 0 },
  print: (value) => `${value.site}.${value.head}`,
  parse: (text) => {
    const [site, which] = text.split(".");
    const parsed = { site: count().parse(site ?? ""), head: head(0).parse(which ?? "") };
    return parsed.site === undefined || parsed.head === undefined ? undefined : (parsed as Place);
  },
};
const list = <T>(field: Field<T>): Field<T[]> => ({
  first: [],
  print: (values) => values.map(field.print).join("-"),
  parse: (text) => {
    const parsed = text === "" ? [] : text.split("-").slice(0, MOST_LISTED).map(field.parse);
    return parsed.includes(undefined) ? undefined : (parsed as T[]);
  },
});
const rectangle: Field<Rectangle> = {
  first: { queries: [0, 0], keys: [0, 0] },
  print: ({ queries, keys }) => [...queries, ...keys].map((value) => String(Math.round(value * 100) / 100)).join("~"),
  parse: (text) => {
    const [a, b, c, d, more] = text.split("~").map(Number);
    if (a === undefined || b === undefined || c === undefined || d === undefined || more !== undefined)
      return undefined;
    if (![a, b, c, d].every(Number.isFinite) || !(a < b && c < d)) return undefined;
    return { queries: [a, b], keys: [c, d] };
  },
};

/** Every field of a link, by its name there. */
const FIELDS = {
  /** The text that is looked at, and one beside it. */
  text: { ...string(30_000), first: "0" },
  beside: nullable(string(30_000)),
  /** The attention call and the head. */
  site: count(),
  head: head("mean"),
  /** Pattern: the head whose weights are taken off; of the text beside where `against` is "beside". */
  against: nullable(place),
  difference: one("none", "head", "beside"),
  /** Heads that were chosen to be compared. */
  chosen: list(place),
  /** The token that looks, and the one that is looked at. */
  query: nullable(count()),
  key: nullable(count()),
  /** Pattern: the part that is seen; null is all of it. */
  rectangle: nullable(rectangle),
  tone: one(...TONES),
  palette: one(...PALETTES),
  reduce: one("max", "mean"),
  /** Lines, pattern: subwords merged into words; special tokens shown. */
  words: yes(true),
  special: yes(false),
  /** Heads: the statistic that orders them, and the one that colours them. "" is the model's own order, and no colour. */
  order: string(),
  colour: string(),
  /** Lines: heads that are drawn (none listed: the one of `head`), tokens that are locked, who looks at whom. */
  drawn: list(count()),
  locked: list(count()),
  /** The same of the text beside: a choice belongs to one text. */
  locked2: list(count()),
  side: one("queries", "keys"),
  /** Lines: the first word that is in view. */
  first: count(),
  /** Inside a head: which step is open. */
  step: count(),
  /** Meaning: the word, its sentences with their senses (JSON), and which occurrence is chosen. */
  word: string(),
  sentences: string(20_000),
  occurrence: count(),
  /** Meaning: the layer whose places are shown; null is the last. Cost: the length of the context that is told of. */
  layer: nullable(count()),
  length: count(131_072),
  /** The step of the tour, from 1; 0: no tour. */
  tour: count(),
} as const;

type Fields = { -readonly [Name in keyof typeof FIELDS]: (typeof FIELDS)[Name] extends Field<infer T> ? T : never };

/** The fields of a look, and the view. */
export type Looked = Fields & { view: View };

function first(): Looked {
  const values = Object.fromEntries(
    Object.entries(FIELDS).map(([name, field]) => [name, structuredClone(field.first)]),
  );
  return { view: "heads", ...values } as Looked;
}

/** A look as the part of a link behind the "#": "/pattern?site=3&head=5". */
export function print(look: Looked): string {
  const parts = Object.entries(FIELDS).flatMap(([name, field]) => {
    const said = (field as Field<unknown>).print(look[name as keyof Fields]);
    return said === (field as Field<unknown>).print(field.first) ? [] : [`${name}=${encodeURIComponent(said)}`];
  });
  return `/${look.view}${parts.length ? `?${parts.join("&")}` : ""}`;
}

/** The look that a link says; what is not said or makes no sense has its first value. */
export function parse(link: string): Looked {
  const [path, query] = link.replace(/^#/, "").split("?", 2);
  const look = first();
  look.view = VIEWS.find((view) => `/${view}` === path) ?? look.view;
  const said = new URLSearchParams(query ?? "");
  for (const [name, field] of Object.entries(FIELDS)) {
    const text = said.get(name);
    const value = text === null ? undefined : (field as Field<unknown>).parse(text);
    if (value !== undefined) Object.assign(look, { [name]: value });
  }
  return look;
}

/** Where a link is kept: the address bar, or memory in a notebook. */
export interface Link {
  read(): string;
  /** `step`: a step that "back" undoes, rather than a change on the way. */
  write(link: string, step: boolean): void;
  /** Calls back when the link was changed from outside. */
  listen(changed: () => void): () => void;
}

/** The look of a page. */
export class Look {
  /** Read and write these; the link follows. */
  readonly at: Looked = $state(first());
  private known = "";

  constructor(private readonly link: Link) {
    this.reread();
  }

  /** Follow the link, both ways, until the returned function is called. To be called within an effect. */
  follow(): () => void {
    $effect(() => {
      const now = print(this.at);
      if (now === this.known) return;
      const step = now.split("?")[0] !== this.known.split("?")[0];
      this.known = now;
      this.link.write(now, step);
    });
    return this.link.listen(() => this.reread());
  }

  /** Go to a look that a link says. */
  go(link: string): void {
    Object.assign(this.at, parse(link));
  }

  /** Change some fields at once. Another text beside leaves behind what was chosen of the one before it. */
  set(change: Partial<Looked>): void {
    const other = change.beside !== undefined && change.beside !== this.at.beside;
    Object.assign(this.at, other ? { locked2: [] } : {}, change);
  }

  /** The link to this look with some fields changed. */
  to(change: Partial<Looked> = {}): string {
    return print({ ...this.at, ...change });
  }

  /** Look at what the link says; one that says odd things is put right, so that what is copied is what is seen. */
  private reread(): void {
    const said = this.link.read();
    Object.assign(this.at, parse(said));
    this.known = print(this.at);
    if (this.known !== said) this.link.write(this.known, false);
  }
}

/** The address bar's part behind the "#". */
export const addressBar: Link = {
  read: () => location.hash.slice(1),
  write: (link, step) => {
    const url = `${location.pathname}${location.search}#${link}`;
    if (step) history.pushState(null, "", url);
    else history.replaceState(null, "", url);
  },
  listen: (changed) => {
    addEventListener("hashchange", changed);
    addEventListener("popstate", changed);
    return () => {
      removeEventListener("hashchange", changed);
      removeEventListener("popstate", changed);
    };
  },
};

/** A link that is kept in memory. */
export function inMemory(link = ""): Link {
  return {
    read: () => link,
    write: (now) => {
      link = now;
    },
    listen: () => () => {},
  };
}
