import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { About, Mover, NumberArray, SiteInfo, TokensAnswer } from "../../source/contract";
import { SENTENCES } from "./examples";
import { lookOf } from "./looks";
import { pieces, placeOf, textWith, tokenOf, whichOf, wordOf } from "./moved";
import { axesOf, labelled, nearest, placeAt } from "./paths";
import { asked, LONGEST_LINK, linked, printed, problemOf, snippet, verdict } from "./sentences";

const TWO = [
  { text: "A spring of water.", sense: "water" },
  { text: "The spring ran dry.", sense: "water" },
];

describe("sentences in a link", () => {
  it("are the examples where it says nothing", () => {
    expect(asked("", "")).toEqual({ word: "bank", sentences: SENTENCES });
    expect(linked({ word: "bank", sentences: SENTENCES })).toEqual({ word: "", sentences: "" });
  });

  it("the examples are those of the library", () => {
    const python = readFileSync(
      new URL("../../../../src/saccade/analysis/senses/examples.py", import.meta.url),
      "utf8",
    );
    const strings = [...python.matchAll(/"([A-Z][^"\n]*\.)"/g)].map((found) => found[1]);
    expect(SENTENCES.map(({ text }) => text).toSorted()).toEqual(strings.toSorted());
  });

  it("come back as they were", () => {
    const sentences = [
      ...TWO,
      { text: 'Which "spring", in “1999”?', sense: null },
      { text: "ends\\", sense: "1" },
      { text: "x", sense: "1" },
    ];
    const link = linked({ word: "spring", sentences });
    expect(asked(link.word, link.sentences)).toMatchObject({ word: "spring" });
    const back = asked(link.word, link.sentences);
    const found = "problem" in back ? [] : back.sentences;
    expect(found).toHaveLength(sentences.length);
    expect(found).toEqual(expect.arrayContaining(sentences));
  });

  it.each([
    ["{", "cannot be read"],
    ['{"a": ["x", "y"]', "cannot be read"],
    ["[]", "no object"],
    ["null", "no object"],
    ['{"a": "x"}', "no list"],
    ['{"a": ["x", 1]}', "no list"],
    ['{"a": [["x"]]}', "no list"],
    ["{}", "at least two"],
    ['{"a": ["x"], "?": ["y"]}', "one sentence"],
    ['{"a": ["x", ""]}', "empty"],
    ['{"": ["x", "y"]}', "no sense"],
    ['{"a": ["x", "x"]}', "twice"],
    [JSON.stringify({ a: ["x", "y".repeat(601)] }), "601 characters"],
    [JSON.stringify({ ["s".repeat(41)]: ["x", "y"] }), "41 characters"],
    [JSON.stringify({ a: Array.from({ length: 65 }, (_, i) => String(i)) }), "65 sentences"],
    [JSON.stringify({ a: Array.from({ length: 50 }, (_, i) => `${i} `.repeat(150)) }), `at most ${LONGEST_LINK}`],
  ])("%s is told what is wrong with it", (text, problem) => {
    expect(asked("", text)).toEqual({ problem: expect.stringContaining(problem) });
  });

  it("a word must be one", () => {
    expect(problemOf(" ", TWO)).toContain("which word");
    expect(problemOf("w".repeat(61), TWO)).toContain("61");
    expect(problemOf("spring", TWO)).toBe("");
  });

  it("a sense named __proto__ is a sense", () => {
    expect(printed([{ text: "x", sense: "__proto__" }])).toBe('{"__proto__":["x"]}');
    expect(asked("x", '{"__proto__":["x a","x b"]}')).toMatchObject({
      sentences: [{ sense: "__proto__" }, { sense: "__proto__" }],
    });
  });
});

describe("words about occurrences", () => {
  it("a snippet has the neighbours that fit", () => {
    expect(snippet("Willows grew along the bank of the stream.", 23, 27)).toBe("along the bank of the stream");
    expect(snippet("Bank!", 0, 4)).toBe("Bank");
    expect(snippet("He left the roses by the bank.", 25, 29)).toBe("by the bank");
  });

  it("a verdict says what is close", () => {
    expect(verdict(["river", "money", "row"], [0.39, 0.41, -0.1])).toBe(
      "nearest to money (0.41), river close behind (0.39), then row (−0.10)",
    );
  });

  it("no two senses look the same, and the unknown like none of them", () => {
    const senses = Array.from({ length: 42 }, (_, i) => `sense ${i}`);
    const looks = [null, ...senses].map((sense) => lookOf(senses, sense)).map(({ colour, form }) => colour + form);
    expect(new Set(looks).size).toBe(43);
  });
});

describe("the map of paths", () => {
  const projection: NumberArray = { data: new Float32Array([0, 0, 2, 0, 1, 1, 2, 3]), shape: [2, 2, 2] };

  it("has points on the way between layers, and none beyond", () => {
    expect(placeAt(projection, 0, 1)).toEqual([2, 0]);
    expect(placeAt(projection, 0.5, 1)).toEqual([2, 1.5]);
    expect(placeAt(projection, 1, 0)).toEqual([1, 1]);
    expect(placeAt(projection, 9, 0)).toEqual([1, 1]);
  });

  it("has axes of one unit that hold all points", () => {
    const [x, y] = axesOf(projection, 400, 100, ["a", "b"]);
    const unit = (axis: typeof x, pixels: number) => (axis.domain[1] - axis.domain[0]) / pixels;
    expect(unit(x, 400)).toBeCloseTo(unit(y, 100), 9);
    expect(x.domain[0]).toBeLessThan(0);
    expect(y.domain[1]).toBeGreaterThan(3);
  });

  it("has axes where all points are one", () => {
    const [x] = axesOf({ data: new Float32Array(8), shape: [2, 2, 2] }, 100, 100, ["a", "b"]);
    expect(x.domain[1]).toBeGreaterThan(x.domain[0]);
  });

  it("finds the mark at the pointer", () => {
    expect(
      nearest(
        [
          [0, 0],
          [10, 0],
        ],
        8,
        1,
        5,
      ),
    ).toBe(1);
    expect(
      nearest(
        [
          [0, 0],
          [10, 0],
        ],
        5,
        40,
        5,
      ),
    ).toBeNull();
  });

  it("labels cover no mark, no label and no edge", () => {
    const ends = [0, 1, 2].map((number) => ({ number, place: [50, 50 + number * 12] as const, text: "a label" }));
    const labels = labelled(ends, [], [0, 0, 120, 100]);
    expect(labels.length).toBeGreaterThan(0);
    expect(labels[0]).toMatchObject({ number: 0, x: 60, anchor: "start" });
    expect(labelled(ends, [], [0, 0, 60, 100]).every((label) => label.anchor !== "start")).toBe(true);
    expect(labelled(ends, [], [49, 49, 51, 51])).toEqual([]);
  });

  it("labels cover as little as can be of the paths", () => {
    const ends = [{ number: 0, place: [100, 50] as const, text: "a label" }];
    const [label] = labelled(
      ends,
      [
        [120, 50],
        [130, 50],
      ],
      [0, 0, 200, 100],
    );
    expect(label).toMatchObject({ x: 90, anchor: "end" });
  });
});

describe("what moved it", () => {
  const movers: Mover[] = [
    { layer: 0, head: 3, word: "the:2", amount: 0.5 },
    { layer: 1, head: 2, word: "the:2", amount: -0.125 },
    { layer: 1, head: 2, word: "[CLS]", amount: 0.1 },
  ];

  it("is added up by word, the second of two told apart", () => {
    const found = pieces("He left the roses by the bank.", 25, 29, movers);
    expect(found.map(({ text }) => text).join("")).toBe("He left the roses by the bank.");
    expect(found.filter(({ amount }) => amount !== null)).toEqual([
      { text: "the", name: "the:2", own: false, amount: 0.375 },
    ]);
    expect(found.filter(({ own }) => own).map(({ text }) => text)).toEqual(["bank"]);
    expect(wordOf("the:2")).toEqual({ word: "the", which: 2 });
    expect(wordOf("bank")).toEqual({ word: "bank", which: 1 });
  });

  it("counts occurrences", () => {
    expect(whichOf("A bank by a bank.", 2)).toBe(1);
    expect(whichOf("A bank by a bank.", 12)).toBe(2);
  });

  const site = (label: string, heads: number[]): SiteInfo => ({
    name: label,
    label,
    heads,
    queries: 4,
    keys: 4,
    query_tokens: null,
    key_tokens: null,
    exact: true,
    map: null,
  });

  it("finds a head by its layer's label, else by order, and says where it is none", () => {
    const sites = [site("layer 1", [0, 1]), site("layer 0", [5, 7])];
    expect(placeOf(sites, 0, 7, 6)).toEqual({ site: 1, head: 1 });
    expect(placeOf(sites, 0, 6, 6)).toBeNull();
    expect(placeOf(sites, 5, 0, 6)).toBeNull();
    expect(placeOf([site("a", [0]), site("b", [0])], 1, 0, 2)).toEqual({ site: 1, head: 0 });
  });

  it("finds the sentence among the texts", () => {
    const texts = [
      { id: "0", name: "", text: null, sites: [] },
      { id: "1", name: "", text: "A bank. ", sites: [] },
    ];
    expect(textWith({ texts } as unknown as About, "A bank.")?.id).toBe("1");
    expect(textWith({ texts } as unknown as About, "Another.")).toBeUndefined();
  });

  it("finds a word's first token, of words in pieces too", () => {
    const tokens: TokensAnswer = {
      labels: ["[CLS]", "The", "em", "·bank", "·ment", "the"],
      word: { data: new Int32Array([0, 1, 2, 2, 2, 3]), shape: [6] },
      special: { data: new Uint8Array(6), shape: [6] },
    };
    expect(tokenOf(tokens, "embankment", 1)).toBe(2);
    expect(tokenOf(tokens, "the", 2)).toBe(5);
    expect(tokenOf(tokens, "the", 3)).toBeNull();
  });
});
