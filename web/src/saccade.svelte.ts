/**
 * What all parts of a page share: the look, the source, what it knows about the texts, and what the open view offers.
 * A component gets it with `shared()`.
 */
import { getContext, setContext } from "svelte";
import { type Link, Look } from "./look.svelte";
import type { About, HeadsAnswer, RolesAnswer, SiteInfo, Source, TextInfo, TokensAnswer } from "./source/contract";

/** What a view can be saved as, and its picture in words. A view offers it with `Shared.offer`. */
export interface Offer {
  /** Names the files: "pattern-layer-3-head-5". */
  name: string;
  /** What the picture says, for who cannot see it: the most important facts, whole sentences. */
  words: string;
  svg: () => Promise<string> | string;
  png: () => Promise<Blob>;
  csv: () => Promise<string> | string;
  json: () => Promise<unknown> | unknown;
}

const KEY = Symbol("saccade");
const LONGEST_IN_LINK = 10_000; // characters of a text
const MOST_TYPED = 20; // texts; a source keeps a few more

/** What all parts of a page share. */
export class Shared {
  readonly look: Look;
  /** What there is to look at; grows when a text is read. */
  about: About = $state.raw({
    model: "",
    writer: "",
    precision: "full",
    abilities: { read: "", inside: "", meaning: "", cost: "" },
    texts: [],
  });
  /** What the open view can be saved as; null while it is being drawn. */
  offered: Offer | null = $state.raw(null);
  /** The element that the page is in. */
  root: HTMLElement | undefined;
  private readonly typed = new Set<string>();
  private readonly kept = new Map<string, Promise<unknown>>();

  constructor(
    readonly source: Source,
    link: Link,
    /** Whether links can be copied: not in a notebook. */
    readonly linked: boolean,
  ) {
    this.look = new Look(link);
  }

  /** The text that is looked at; the first one where the link names none that there is. */
  get text(): TextInfo {
    return this.textOf(this.look.at.text) ?? (this.about.texts[0] as TextInfo);
  }

  /** The text beside it, if there is one. */
  get beside(): TextInfo | null {
    return this.look.at.beside === null ? null : (this.textOf(this.look.at.beside) ?? null);
  }

  /** The site that is looked at. */
  get site(): SiteInfo {
    const sites = this.text.sites;
    return sites[Math.min(this.siteNumber, sites.length - 1)] as SiteInfo;
  }

  /** Its place in the text, which the link may overstep. */
  get siteNumber(): number {
    return Math.max(Math.min(this.look.at.site, this.text.sites.length - 1), 0);
  }

  /** The head that is looked at, which the link may overstep; the first one where there is no mean to be had. */
  get head(): number | "mean" {
    const head = this.look.at.head;
    if (head === "mean") return hasMean(this.site) ? head : 0;
    return Math.min(head, this.site.heads.length - 1);
  }

  /** Put right what the link oversteps, so that it says what is seen; of a text that is still to come nothing is known. */
  stayWithin(): void {
    if (!this.textOf(this.look.at.text)) return;
    const { site, head } = this.look.at;
    if (site !== this.siteNumber) this.look.set({ site: this.siteNumber });
    if (head !== "mean" && head !== this.head) this.look.set({ head: this.head });
  }

  /** A text by its name in a link: its id, or "~" and the text itself. */
  textOf(name: string): TextInfo | undefined {
    return this.about.texts.find((text) => (name.startsWith("~") ? text.text === name.slice(1) : text.id === name));
  }

  /** How a link names a text that was typed in: by what it says, so that the link works after the server was started anew. */
  nameOf(text: TextInfo): string {
    return text.text !== null && text.text.length <= LONGEST_IN_LINK ? `~${text.text}` : text.id;
  }

  /** A text joins those that there are; the oldest that was typed in and is not looked at makes room. */
  add(text: TextInfo): void {
    const kept = this.about.texts.filter((known) => known.id !== text.id);
    const typed = kept.filter((known) => this.typed.has(known.id) && known !== this.text && known !== this.beside);
    const leaving = typed.length >= MOST_TYPED ? typed[0] : undefined;
    this.typed.add(text.id);
    this.about = { ...this.about, texts: [...kept.filter((known) => known !== leaving), text] };
  }

  /** Whether a key is meant for this page: of a notebook it has only a part, and nobody types into a field. */
  hears(event: KeyboardEvent): boolean {
    const { target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    if (!this.linked && !(target instanceof Node && this.root?.contains(target))) return false;
    return !(target instanceof Element && target.closest("input, textarea, select, [contenteditable]"));
  }

  /** Let a view say what it can be saved as. */
  offer(offer: Offer | null): void {
    this.offered = offer;
  }

  /** The tokens of a sequence; asked once. null where they are not known. */
  tokens(text: string, sequence: string | null): Promise<TokensAnswer | null> {
    if (sequence === null) return Promise.resolve(null);
    return this.once(`tokens ${text} ${sequence}`, () => this.source.ask("tokens", { text, sequence }));
  }

  /** All heads at a glance; asked once. */
  heads(text: string): Promise<HeadsAnswer> {
    return this.once(`heads ${text}`, () => this.source.ask("heads", { text }));
  }

  /** What each head does; asked once. */
  roles(text: string): Promise<RolesAnswer> {
    return this.once(`roles ${text}`, () => this.source.run("roles", { text }));
  }

  private once<T>(name: string, ask: () => Promise<T>): Promise<T> {
    const known = this.kept.get(name) as Promise<T> | undefined;
    if (known) return known;
    const asked = ask();
    this.kept.set(name, asked);
    asked.catch(() => this.kept.delete(name));
    return asked;
  }
}

/** Whether the mean of a site's heads can be had: maps of each head's largest weights do not give it. */
export function hasMean({ exact, map, heads }: SiteInfo): boolean {
  return exact || heads.length === 1 || (map !== null && map.reduce !== "max");
}

/** To be called once, by the component at the root. */
export function share(shared: Shared): void {
  setContext(KEY, shared);
}

/** What all parts share. To be called while a component is made. */
export function shared(): Shared {
  return getContext<Shared>(KEY);
}
