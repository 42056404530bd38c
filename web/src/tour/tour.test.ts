import { describe, expect, it } from "vitest";
import { parse, print } from "../look.svelte";
import type { Shared } from "../saccade.svelte";
import type { StrongestAnswer, StrongestKey, TokensAnswer } from "../source/contract";
import { chooseWord, exampleOf, STEPS } from "./tour";

const tokensOf = (labels: string[], special: number[]): TokensAnswer => ({
  labels,
  word: { data: Int32Array.from(labels.keys()), shape: [labels.length] },
  special: { data: Uint8Array.from(special), shape: [labels.length] },
});

describe("the word that the tour is about", () => {
  it("is the last bank", () => {
    expect(chooseWord(tokensOf(["[CLS]", "bank", "by", "Bank", ".", "[SEP]"], [1, 0, 0, 0, 0, 1]))).toBe(3);
  });

  it("else is the last that has a letter, and no special one", () => {
    expect(chooseWord(tokensOf(["[CLS]", "a", "river", "…", "[SEP]"], [1, 0, 0, 0, 1]))).toBe(2);
    expect(chooseWord(tokensOf(["?"], [0]))).toBe(0);
  });
});

/** A page of one text, in which the query gives these weights to these keys, by site and head. */
function page(tokens: TokensAnswer, answers: [partner: number, weight: number][][][]): Shared {
  const length = tokens.labels.length;
  const site = {
    name: "",
    label: "",
    heads: [0, 1],
    queries: length,
    keys: length,
    query_tokens: "0",
    key_tokens: "0",
  };
  const text = { id: "7", name: "", text: null, sites: answers.map(() => ({ ...site, exact: true, map: null })) };
  const answer = ({ site, count }: StrongestKey): StrongestAnswer => {
    const found = answers[site]?.flatMap((row) => Array.from({ length: count }, (_, i) => row[i] ?? [-1, 0]));
    const shape = [2, 1, count];
    return {
      partner: { data: Int32Array.from(found?.map(([partner]) => partner ?? -1) ?? []), shape },
      weight: { data: Float32Array.from(found?.map(([, weight]) => weight ?? 0) ?? []), shape },
      whole: { data: new Float32Array(2), shape: [2, 1] },
      special: { data: new Float32Array(2), shape: [2, 1] },
    };
  };
  return {
    about: { texts: [text] },
    text,
    tokens: () => Promise.resolve(tokens),
    source: { ask: (_: string, key: StrongestKey) => Promise.resolve(answer(key)) },
  } as unknown as Shared;
}

describe("the head that the tour is about", () => {
  const tokens = tokensOf(["[CLS]", "river", ",", "the", "bank", "[SEP]"], [1, 0, 0, 0, 0, 1]);

  it("looks most decidedly at a word that is not beside", async () => {
    const rows: [number, number][][][] = [
      [
        [
          [3, 0.9],
          [1, 0.1],
        ],
        [[4, 1]],
      ],
      [
        [
          [2, 0.8],
          [1, 0.2],
        ],
        [
          [3, 0.7],
          [1, 0.3],
        ],
      ],
    ];
    const { site, head, key, word, partner } = await exampleOf(page(tokens, rows));
    expect({ site, head, key, word, partner }).toEqual({ site: 1, head: 1, key: 1, word: "bank", partner: "river" });
  });

  it("is the first where none does", async () => {
    const { site, head, key } = await exampleOf(page(tokens, [[[[3, 1]], [[4, 1]]]]));
    expect({ site, head, key }).toEqual({ site: 0, head: 0, key: 3 });
  });
});

it("each step of the tour is a link of its own, and says something", () => {
  const example = { text: "7", word: "bank", partner: "river", query: 4, key: 1, site: 1, head: 1 };
  const links = STEPS.map((step, i) => print({ ...parse(""), ...step.look(example), tour: i + 1 }));
  expect(new Set(links).size).toBe(STEPS.length);
  for (const [i, link] of links.entries()) expect(parse(link)).toMatchObject(STEPS[i]?.look(example) ?? {});
  for (const step of STEPS) expect(step.says(example).length).toBeGreaterThan(80);
});
