/** The story as sentences, and as rows of numbers. */
import { number, percent } from "../../parts/names";
import { broken } from "./story";
import type { Told } from "./told";

/** The most important facts, for who cannot see the figures. */
export function words(told: Told): string {
  const { story } = told;
  const { score, softmax, output, layer } = story;
  const top = score.largest.map((one) => `dimension ${one.dimension} with ${number(one.product)}`).join(", ");
  const said = [
    `In ${told.layer}, ${told.head}, ${told.query} (token ${told.queryAt}) gives ${told.key} (token ${told.keyAt}) ${percent(softmax.asked.weight)} of its attention.`,
    `The ${score.products.length} products of query and key sum to ${number(score.sum)}; the largest are ${top}.`,
    `Times the scale ${number(story.answer.scale)} the score is ${number(score.capped + score.bias)}.`,
    softmaxWords(told),
  ];
  if (output) said.push(`The values, weighted and summed, are an output of length ${number(output.length)}.`);
  if (layer.lengths && layer.added !== null) {
    const own = layer.lengths[told.headAt] ?? Number.NaN;
    said.push(
      `Behind the projection this head adds a vector of length ${number(own)}; all ${told.heads.length} heads together, ${number(layer.added)}.`,
    );
  }
  const part = layer.parts?.reduce((a, b) => (Math.abs(b.along) > Math.abs(a.along) ? b : a));
  if (part) said.push(`Most of the state that leaves the layer is ${part.label}: ${number(part.along)} along it.`);
  const wrong = broken(story).length;
  if (wrong > 0) said.push(`${wrong} of the checks do not add up: that is a bug.`);
  if (told.missing) said.push(told.missing);
  return said.join(" ");
}

function softmaxWords({ story: { softmax, answer }, quoted }: Told): string {
  if (!softmax.any) return "The mask hides every key from it.";
  const heaviest = [...softmax.rows].sort((a, b) => b.weight - a.weight).slice(0, 3);
  const hidden = softmax.rows.filter((row) => !row.visible).length;
  const listed = heaviest.map((row) => `${quoted(row.position)} ${percent(row.weight)}`).join(", ");
  const parts = [`Heaviest are ${listed}.`];
  if (hidden > 0) parts.push(`The mask hides ${hidden} of the keys that are listed.`);
  if (answer.sink !== null) parts.push(`The sink takes ${percent(softmax.sink)}.`);
  parts.push(`All weights sum to ${(softmax.listed + answer.rest).toFixed(5)}.`);
  return parts.join(" ");
}

export const COLUMNS = ["step", "item", "number"] as const;

/** Every number of the story: which step, what it is, the number. */
export function* rows(told: Told): Generator<[number, string, number]> {
  const { story } = told;
  const { answer, score, softmax, output, layer } = story;
  const vectors = (step: number, named: Record<string, ArrayLike<number> | null | undefined>) =>
    Object.entries(named).flatMap(([name, vector]) =>
      Array.from(vector ?? [], (value, i): [number, string, number] => [step, `${name}[${i}]`, value]),
    );
  yield* vectors(1, {
    state: answer.state?.data,
    key_state: answer.key_state?.data,
    q: answer.query.data,
    k: answer.key.data,
  });
  yield* vectors(2, { product: score.products.map((one) => one.product) });
  yield [2, "sum of products", score.sum];
  yield [2, "scale", answer.scale];
  if (answer.softcap !== null) yield [2, "softcap", answer.softcap];
  yield [2, "score", score.capped];
  yield [2, "bias", score.bias];
  for (const row of softmax.rows) {
    const name = `${told.label(row.position)} (token ${row.position})`;
    yield [3, `score of ${name}`, row.score];
    yield [3, `bias of ${name}`, row.bias];
    yield [3, `visible: ${name}`, Number(row.visible)];
    yield [3, `weight of ${name}`, row.weight];
  }
  yield [3, "weight of other keys", softmax.others];
  yield [3, "weight of the sink", softmax.sink];
  yield [3, "sum of all weights", softmax.listed + answer.rest];
  for (const { row, vector } of output?.shares ?? []) {
    yield* vectors(4, { [`weight x value of ${told.label(row.position)} (token ${row.position})`]: vector });
  }
  yield* vectors(4, { output: output?.output.data });
  for (const [place, long] of (layer.lengths ?? []).entries())
    yield [5, `length of what head ${told.heads[place]} adds`, long];
  yield* vectors(5, { added: answer.added?.data });
  for (const part of layer.parts ?? []) {
    yield [5, `length of ${part.label}`, part.length];
    yield [5, `cosine of ${part.label}`, part.cosine];
  }
  yield* vectors(5, { after: answer.after?.data });
}
