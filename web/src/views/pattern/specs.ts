/** Which maps a look asks for. */
import type { Looked, Place } from "../../look.svelte";
import { headName } from "../../parts/names";
import type { Head, SiteInfo, TextInfo, TokensAnswer } from "../../source/contract";
import type { Extent } from "./geometry";
import type { Subject } from "./tiles";

/** The most small maps beside the large one. */
export const MOST_SMALL = 6;

/** A site's tokens, as far as they are known. */
export interface Sequences {
  readonly queries: TokensAnswer | null;
  readonly keys: TokensAnswer | null;
}

/** A map to be shown. */
export interface MapSpec {
  readonly subject: Subject;
  /** What is taken off it. */
  readonly against: Subject | null;
  readonly title: string;
  readonly queryLabels: readonly string[] | null;
  readonly keyLabels: readonly string[] | null;
  /** Which keys are special tokens, where the scale is to leave them out. */
  readonly specialKeys: ArrayLike<number> | null;
}

/** A small map, and where it is to be found. */
export interface SmallSpec extends MapSpec {
  readonly place: Place;
}

type Asked = Pick<Looked, "reduce" | "special" | "difference" | "against" | "chosen">;

/** What is looked at, with the places that a link may overstep brought back. */
export interface Looking {
  readonly text: TextInfo;
  readonly beside: TextInfo | null;
  readonly site: number;
  readonly head: Head;
  readonly look: Asked;
}

export function subjectOf(text: TextInfo, { site, head }: Place, reduce: "mean" | "max"): Subject | null {
  const info = text.sites[site];
  if (!info || !hasMap(info)) return null;
  const extent = { queries: info.queries, keys: info.keys };
  return {
    text: text.id,
    site,
    head: head === "mean" ? head : Math.min(head, info.heads.length - 1),
    reduce,
    extent,
    exact: info.exact,
  };
}

/** What a map shows: of a difference, as much as both maps have of each side. */
export function extentOf({ subject, against }: Pick<MapSpec, "subject" | "against">): Extent {
  const { queries, keys } = subject.extent;
  if (!against) return subject.extent;
  return { queries: Math.min(queries, against.extent.queries), keys: Math.min(keys, against.extent.keys) };
}

/** Whether there is anything to draw of a site. */
export function hasMap(info: SiteInfo): boolean {
  return info.queries > 0 && info.keys > 0 && (info.exact || info.map !== null);
}

/** Whether the map that was kept has a cell for each pair: then it holds the weights themselves. */
export function isWhole({ map, queries, keys }: SiteInfo): boolean {
  return map !== null && map.cells[0] === queries && map.cells[1] === keys;
}

/** "layer 3, head 5". */
export function placeName(text: TextInfo, { site, head }: Place): string {
  const info = text.sites[site];
  return info ? `${info.label}, ${headName(info, head)}` : `layer number ${site}`;
}

/** What is taken off, if anything can be. */
export function againstOf({ text, beside, site, head, look }: Looking): { subject: Subject; name: string } | null {
  const place = look.difference === "head" ? look.against : { site, head };
  const of = look.difference === "beside" ? beside : look.difference === "head" ? text : null;
  const subject = of && place && subjectOf(of, place, look.reduce);
  if (!subject || !of) return null;
  const name = look.difference === "beside" ? `“${of.name}”` : placeName(of, subject);
  return { subject, name };
}

/** The large maps: one, a difference, or two texts beside one another. */
export function mapsOf(looking: Looking, tokens: (text: TextInfo) => Sequences): MapSpec[] {
  const { text, beside, site, head, look } = looking;
  const against = againstOf(looking);
  const texts = beside && look.difference === "none" ? [text, beside] : [text];
  return texts.flatMap((one) => {
    const subject = subjectOf(one, { site, head }, look.reduce);
    if (!subject) return [];
    const { queries, keys } = tokens(one);
    return {
      subject,
      against: against?.subject ?? null,
      title: against ? `${placeName(one, subject)} − ${against.name}` : texts.length > 1 ? one.name : "",
      queryLabels: queries?.labels ?? null,
      keyLabels: keys?.labels ?? null,
      specialKeys: look.special ? null : (keys?.special.data ?? null),
    };
  });
}

/** The small maps: chosen heads, without the one that is large. Where something is taken off that one, it is off them too. */
export function smallOf(looking: Looking, tokens: (text: TextInfo) => Sequences): SmallSpec[] {
  const { text, site, head, look } = looking;
  return look.chosen
    .filter((place) => !(place.site === site && place.head === head))
    .slice(0, MOST_SMALL)
    .flatMap((place) => {
      const subject = subjectOf(text, place, look.reduce);
      if (!subject) return [];
      const against = againstOf({ ...looking, ...place })?.subject ?? null;
      const sameKeys = text.sites[place.site]?.key_tokens === text.sites[site]?.key_tokens;
      const specialKeys = look.special || !sameKeys ? null : (tokens(text).keys?.special.data ?? null);
      return {
        subject,
        place,
        against,
        title: placeName(text, subject),
        queryLabels: null,
        keyLabels: null,
        specialKeys,
      };
    });
}
