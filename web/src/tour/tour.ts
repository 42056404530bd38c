/**
 * The tour: the ideas of attention in the order in which one needs them, each shown by the real page in a state of its own.
 *
 * A step is a look like any other: its link can be copied, and what the page shows there are this model's numbers.
 */
import type { Looked } from "../look.svelte";
import type { Shared } from "../saccade.svelte";
import type { TextInfo, TokensAnswer } from "../source/contract";

/** What the tour shows things on: a word of a text, and the head that looks from it most decidedly. */
export interface Example {
  text: string;
  word: string;
  partner: string;
  /** Positions: tokens. */
  query: number;
  key: number;
  site: number;
  head: number;
}

export interface Step {
  title: string;
  says: (example: Example) => string;
  look: (example: Example) => Partial<Looked>;
}

const inside =
  (step: number) =>
  (e: Example): Partial<Looked> => ({
    view: "inside",
    text: e.text,
    site: e.site,
    head: e.head,
    query: e.query,
    key: e.key,
    step,
  });

/** The steps, in order. */
export const STEPS: readonly Step[] = [
  {
    title: "Text becomes tokens, and tokens become numbers",
    says: (e) =>
      `A model reads a text in pieces, its tokens. Each one begins as a list of numbers, its embedding: the same one for “${e.word}” in every sentence. All that follows makes it fit this sentence. Choose a token to see its numbers.`,
    look: inside(1),
  },
  {
    title: "Each token asks, and each token answers",
    says: (e) =>
      `Three matrices make three shorter lists from an embedding. The query is what a token is looking for, the key is what it offers to be found by, the value is what it hands over. Here is the query of “${e.word}” and the key of “${e.partner}”.`,
    look: inside(1),
  },
  {
    title: "Query times key: a score",
    says: (e) =>
      `Number by number, the query of “${e.word}” is multiplied with the key of “${e.partner}”, and the products are added up. The better both point the same way, the higher the score. It is divided by the square root of their width, so that it does not grow with it.`,
    look: inside(2),
  },
  {
    title: "Softmax: scores become shares",
    says: (e) =>
      `“${e.word}” has a score with every token that it may see. Softmax raises e to each score and divides by the sum: the results lie between 0 and 1 and add up to 1. A model that writes hides the tokens that come later; their share is exactly 0.`,
    look: inside(3),
  },
  {
    title: "All of it at once: the attention pattern",
    says: () =>
      "Done for every token, that makes a grid: a row for each token that looks, a column for each one that is looked at. This is the attention pattern of one head. Point at a cell for its weight; zoom with the wheel or with + and −.",
    look: (e) => ({
      view: "pattern",
      text: e.text,
      site: e.site,
      head: e.head,
      query: e.query,
      key: e.key,
      rectangle: null,
      difference: "none",
      chosen: [],
    }),
  },
  {
    title: "The same as lines",
    says: (e) =>
      `On the left the tokens that look, on the right those that are looked at; the stronger the line, the larger the weight. “${e.word}” is locked here: in this head it looks at “${e.partner}”. Much of the rest often goes to tokens that stand for nothing; the page says how much.`,
    look: (e) => ({
      view: "lines",
      text: e.text,
      site: e.site,
      head: e.head,
      drawn: [],
      side: "queries",
      locked: [e.query],
    }),
  },
  {
    title: "Weights times values: what is handed over",
    says: (e) =>
      `Each value is multiplied with its weight, and all are added. That sum is what this head has found for “${e.word}”: mostly what “${e.partner}” had to hand over.`,
    look: inside(4),
  },
  {
    title: "Many heads look for many things",
    says: () =>
      "Every layer has several heads, each with matrices of its own, all at work at the same time. Some look at the word before, some at the beginning, some at words of one kind. Here are all of them; order or colour them by what they do, and open one.",
    look: (e) => ({ view: "heads", text: e.text, site: e.site, head: e.head }),
  },
  {
    title: "Heads are joined and added to the embedding",
    says: (e) =>
      `What the heads found is put end to end, one more matrix (the projection) brings it to the embedding's width, and it is added: the embedding of “${e.word}” moves a little. The next layer starts from there.`,
    look: inside(5),
  },
  {
    title: "Layer by layer a meaning forms",
    says: () =>
      "River bank, bank account, a bank of monitors: the model starts with one vector for “bank” and moves it, by what stands around it. The paths come apart layer by layer. “He left the roses by the bank.” says too little to be sure, and it stays between.",
    look: () => ({ view: "meaning", word: "", sentences: "" }),
  },
  {
    title: "The price: everybody looks at everybody",
    says: () =>
      "A context twice as long makes a pattern four times as large. Stored, it soon fits no memory. It need not be stored: computed piece by piece, memory grows with the length only, and each question about the pattern is still answered exactly.",
    look: () => ({ view: "cost" }),
  },
  {
    title: "Now yours",
    says: () =>
      "Type a text above and look at it, or open a recording of a long one: “saccade record” keeps what a model attended to, and this page opens it, up to a million tokens. Large models do all of this in 96 layers of 96 heads, spread over many devices: heads are independent of each other, and so are rows.",
    look: (e) => ({ view: "heads", text: e.text }),
  },
];

const NEAREST = 3; // tokens that are no example: itself and its neighbours
const known = new WeakMap<Shared, Promise<Example>>();

/** The example of a page: found once. */
export function exampleOf(all: Shared): Promise<Example> {
  const found = known.get(all) ?? find(all);
  known.set(all, found);
  found.catch(() => known.delete(all));
  return found;
}

/** Go to a step, from 1; 0 leaves the tour. */
export async function goTo(all: Shared, number: number): Promise<void> {
  const step = STEPS[number - 1];
  if (!step) return all.look.set({ tour: 0 });
  all.look.set({ ...step.look(await exampleOf(all)), tour: number });
}

/** The word that the tour is about: "bank" where there is one, else the last ordinary word that has a letter. */
export function chooseWord(tokens: TokensAnswer): number {
  const ordinary = tokens.labels.flatMap((label, i) =>
    tokens.special.data[i] === 0 && /\p{L}/u.test(label) ? [i] : [],
  );
  const banks = ordinary.filter((i) => tokens.labels[i]?.trim().toLowerCase() === "bank");
  return banks.at(-1) ?? ordinary.at(-1) ?? 0;
}

async function find(all: Shared): Promise<Example> {
  const text = all.about.texts.find((one) => /\bbank\b/i.test(one.text ?? "")) ?? all.text;
  const tokens = await tokensOf(all, text);
  const query = tokens ? chooseWord(tokens) : text.sites[0] ? text.sites[0].queries - 1 : 0;
  const found = await strongest(all, text, query, tokens);
  const label = (i: number) => tokens?.labels[i]?.trim() ?? String(i);
  return { text: text.id, word: label(query), partner: label(found.key), query, ...found };
}

function tokensOf(all: Shared, text: TextInfo): Promise<TokensAnswer | null> {
  const site = text.sites[0];
  return site ? all.tokens(text.id, site.query_tokens) : Promise.resolve(null);
}

/** The head in which a token looks most decidedly at an ordinary token that is not its neighbour: that says more. */
async function strongest(all: Shared, text: TextInfo, query: number, tokens: TokensAnswer | null) {
  let best = { site: 0, head: 0, key: Math.max(query - 1, 0), weight: -1 };
  for (const [site, about] of text.sites.entries()) {
    if (!about.exact || about.query_tokens !== about.key_tokens || query >= about.queries) continue;
    const answer = await all.source.ask("strongest", {
      text: text.id,
      site,
      heads: about.heads.map((_, head) => head),
      side: "queries",
      range: [query, query + 1],
      count: NEAREST + 1,
      words: false,
      ordinary: true,
    });
    answer.partner.data.forEach((key, i) => {
      const weight = answer.weight.data[i] ?? 0;
      const speaks = key >= 0 && Math.abs(key - query) > 1 && /\p{L}/u.test(tokens?.labels[key] ?? "x");
      if (speaks && weight > best.weight) best = { site, head: Math.floor(i / (NEAREST + 1)), key, weight };
    });
  }
  return { site: best.site, head: best.head, key: best.key };
}
