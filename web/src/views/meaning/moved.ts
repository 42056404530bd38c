/** What moved a word: movers by the words of their sentence, and where their heads are among the texts that were read. */
import type { About, Mover, SiteInfo, TextInfo, TokensAnswer } from "../../source/contract";

/** A piece of a sentence: a word, or what stands between words. */
export interface Piece {
  text: string;
  /** Its name among movers: "the", the second one "the:2". "" for blanks. */
  name: string;
  /** Whether it is the word that is followed. */
  own: boolean;
  /** What the movers brought from it, together; null if none of them read it. */
  amount: number | null;
}

const PIECES = /[\p{L}\p{N}\p{M}]+|\s+|[^\p{L}\p{N}\p{M}\s]+/gu;

/** A sentence in pieces, with what the movers brought from each. */
export function pieces(sentence: string, start: number, stop: number, movers: readonly Mover[]): Piece[] {
  const sums = new Map<string, number>();
  for (const { word, amount } of movers) sums.set(word, (sums.get(word) ?? 0) + amount);
  const seen = new Map<string, number>();
  return [...sentence.matchAll(PIECES)].map(({ 0: text, index }) => {
    const name = text.trim() === "" ? "" : unique(text, seen);
    return { text, name, own: index < stop && index + text.length > start, amount: sums.get(name) ?? null };
  });
}

function unique(label: string, seen: Map<string, number>): string {
  const count = (seen.get(label) ?? 0) + 1;
  seen.set(label, count);
  return count === 1 ? label : `${label}:${count}`;
}

/** A mover's word as it is shown: "the:2" is the second "the". */
export function wordOf(name: string): { word: string; which: number } {
  const said = /^(.+):(\d+)$/.exec(name);
  return said ? { word: said[1] as string, which: Number(said[2]) } : { word: name, which: 1 };
}

/** The text among those that were read that is this sentence. */
export function textWith(about: About, sentence: string): TextInfo | undefined {
  return about.texts.find((text) => text.text?.trim() === sentence.trim());
}

/**
 * The place of a layer's head among a text's sites. By the label, which says the layer; where no label does, and there are
 * as many sites as layers, by their order. null: that head was not kept.
 */
export function placeOf(
  sites: readonly SiteInfo[],
  layer: number,
  head: number,
  layers: number,
): { site: number; head: number } | null {
  const labelled = sites.findIndex(({ label }) => label === `layer ${layer}`);
  const site = labelled >= 0 ? labelled : sites.length === layers ? layer : -1;
  const place = sites[site]?.heads.indexOf(head) ?? -1;
  return place >= 0 ? { site, head: place } : null;
}

/** The first token of the `which`th word that is printed like this (case does not matter); null: there is none. */
export function tokenOf({ labels, word }: TokensAnswer, wanted: string, which: number): number | null {
  let left = which;
  for (let start = 0; start < labels.length; ) {
    let stop = start + 1;
    while (stop < labels.length && word.data[stop] === word.data[start]) stop++;
    const whole = labels
      .slice(start, stop)
      .map((label) => label.replace(/^[·#]+/, "").trim())
      .join("");
    if (whole.toLowerCase() === wanted.toLowerCase() && --left === 0) return start;
    start = stop;
  }
  return null;
}

/** How manieth of its like a word at a place of a sentence is, from 1. */
export function whichOf(sentence: string, start: number): number {
  const name = pieces(sentence, start, start + 1, []).find((piece) => piece.own)?.name ?? "";
  return wordOf(name).which;
}
