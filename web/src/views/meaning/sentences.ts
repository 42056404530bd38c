/**
 * The word and its sentences as a link holds them, checked: a link comes from outside.
 *
 * In a link, sentences are JSON by sense: {"?": ["He left the roses by the bank."], "river": [...], ...}. "" stands for
 * the examples. "?" is the sense that is to be found out.
 */
import type { SensedSentence } from "../../source/contract";
import { SENTENCES, WORD } from "./examples";

export const UNKNOWN = "?";
export const MOST_SENTENCES = 64;
export const LONGEST_SENTENCE = 600; // characters
export const LONGEST_SENSE = 40;
export const LONGEST_WORD = 60;
/** Characters of a link's sentences: the link (`look.svelte.ts`) holds no more. */
export const LONGEST_LINK = 20_000;

export interface Asked {
  word: string;
  sentences: readonly SensedSentence[];
}

/** What a link asks for, or why it cannot be read. */
export function asked(word: string, sentences: string): Asked | { problem: string } {
  const read = sentences === "" ? SENTENCES : parsed(sentences);
  if ("problem" in read) return read;
  const problem = problemOf(word || WORD, read);
  return problem ? { problem } : { word: (word || WORD).trim(), sentences: read };
}

/** The link's two fields for a word and sentences. */
export function linked({ word, sentences }: Asked): { word: string; sentences: string } {
  const said = printed(sentences);
  return { word: word === WORD ? "" : word, sentences: said === printed(SENTENCES) ? "" : said };
}

/** Sentences as JSON, by sense in the order in which senses first come. */
export function printed(sentences: readonly SensedSentence[]): string {
  const bySense = new Map<string, string[]>();
  for (const { text, sense } of sentences) {
    const name = sense ?? UNKNOWN;
    bySense.set(name, [...(bySense.get(name) ?? []), text]);
  }
  return JSON.stringify(Object.fromEntries(bySense));
}

function parsed(text: string): readonly SensedSentence[] | { problem: string } {
  const expected = `expected JSON like {"river": ["He sat on the river bank."], "?": ["He left the roses by the bank."]}`;
  let said: unknown;
  try {
    said = JSON.parse(text);
  } catch {
    return { problem: `The sentences in the link cannot be read; ${expected}.` };
  }
  if (typeof said !== "object" || said === null || Array.isArray(said)) {
    return { problem: `The sentences in the link are no object; ${expected}.` };
  }
  const found: SensedSentence[] = [];
  for (const [sense, texts] of Object.entries(said)) {
    if (!Array.isArray(texts) || !texts.every((one) => typeof one === "string")) {
      return { problem: `Sense “${shortened(sense)}” in the link has no list of sentences; ${expected}.` };
    }
    for (const one of texts) found.push({ text: one.trim(), sense: sense.trim() === UNKNOWN ? null : sense.trim() });
  }
  return found;
}

/** What is wrong with a word and sentences, as a sentence; "" where nothing is. What only the model knows it will say. */
export function problemOf(word: string, sentences: readonly SensedSentence[]): string {
  if (!word.trim()) return "Say which word the sentences have in common.";
  if (word.length > LONGEST_WORD) return `The word has ${word.length} characters; expected at most ${LONGEST_WORD}.`;
  if (sentences.length < 2) return `Expected at least two sentences; there ${sentences.length ? "is one" : "is none"}.`;
  if (sentences.length > MOST_SENTENCES)
    return `There are ${sentences.length} sentences; expected at most ${MOST_SENTENCES}.`;
  const counts = new Map<string, number>();
  const seen = new Set<string>();
  for (const { text, sense } of sentences) {
    const shown = `“${shortened(text)}”`;
    if (!text.trim()) return "A sentence is empty; write it, or remove it.";
    if (text.length > LONGEST_SENTENCE)
      return `${shown} has ${text.length} characters; expected at most ${LONGEST_SENTENCE}.`;
    if (sense === "") return `${shown} has no sense; name one, or write “?” where it is to be found out.`;
    if (sense && sense.length > LONGEST_SENSE)
      return `Sense “${shortened(sense)}” has ${sense.length} characters; expected at most ${LONGEST_SENSE}.`;
    if (seen.has(text)) return `${shown} is there twice; change one, or remove it.`;
    seen.add(text);
    if (sense !== null) counts.set(sense, (counts.get(sense) ?? 0) + 1);
  }
  const lonely = [...counts].find(([, count]) => count < 2);
  if (lonely)
    return `Sense “${shortened(lonely[0])}” has one sentence; expected two or more, or “?” if it is to be found out.`;
  const length = printed(sentences).length;
  if (length > LONGEST_LINK)
    return `The sentences have ${length} characters as a link holds them; expected at most ${LONGEST_LINK}.`;
  return "";
}

function shortened(text: string): string {
  return text.length > 40 ? `${text.slice(0, 39)}…` : text;
}

/** A sentence's part before the word, the word, and the part after. */
export function cut(text: string, start: number, stop: number): [before: string, word: string, after: string] {
  return [text.slice(0, start), text.slice(start, stop), text.slice(stop)];
}

/** The word with the neighbours that fit into some characters on each side. */
export function snippet(text: string, start: number, stop: number, room = 14): string {
  const [before, word, after] = cut(text, start, stop);
  const left = before.split(/\s+/).filter(Boolean).slice(-2);
  const right = after.split(/\s+/).filter(Boolean).slice(0, 3);
  while (left.join(" ").length > room) left.shift();
  while (right.join(" ").length > room) right.pop();
  const joined = /^\s/.test(after) || right.length === 0 ? " " : "";
  return `${[...left, word].join(" ")}${joined}${right.join(" ")}`.trim().replace(/[\s.,;:!?]+$/, "");
}

/** The sense that an occurrence is nearest to, and how near to each, in words. */
export function verdict(senses: readonly string[], near: readonly number[]): string {
  const order = senses.map((_, i) => i).sort((a, b) => (near[b] as number) - (near[a] as number));
  const best = near[order[0] as number] as number;
  const told = order.map((i, rank) => {
    const value = (near[i] as number).toFixed(2).replace("-", "−");
    if (rank === 0) return `nearest to ${senses[i]} (${value})`;
    const close = best - (near[i] as number) < CLOSE;
    return close ? `${senses[i]} close behind (${value})` : `then ${senses[i]} (${value})`;
  });
  return told.join(", ");
}

/** Of cosine, behind the nearest: that is no clear win. */
const CLOSE = 0.05;
