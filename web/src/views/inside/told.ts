/** What the steps of a story are told with: the story, and how everything in it is called. */
import type { Story } from "./story";

export interface Told {
  story: Story;
  /** Positions of the query and the key. */
  queryAt: number;
  keyAt: number;
  /** The head's place among those of its site. */
  headAt: number;
  /** “bank”, “river”, “head 5”, “layer 3”: as they stand in a sentence. */
  query: string;
  key: string;
  head: string;
  layer: string;
  /** The model's numbers of the site's heads. */
  heads: readonly number[];
  /** How many keys there are. */
  keys: number;
  /** The query, bare and whole. */
  queryLabel: string;
  /** A key: in quotes and bare, as both are seen; and whole, as it is saved. */
  quoted: (position: number) => string;
  shown: (position: number) => string;
  label: (position: number) => string;
  /** Why a part of the answer is not there. */
  missing: string;
}

const LONGEST = 20; // characters of a token's label: one that no tokenizer cuts may be as long as a line

/** A token's label where it is seen. */
export function brief(label: string): string {
  const characters = [...label];
  return characters.length > LONGEST ? `${characters.slice(0, LONGEST - 1).join("")}…` : label;
}

/** As it stands at the beginning of a sentence. */
export function capital(name: string): string {
  return name.charAt(0).toUpperCase() + name.slice(1);
}
