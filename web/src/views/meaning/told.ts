/** An answer about meaning in words, and as rows and JSON to save. */
import { number, percent } from "../../parts/names";
import type { MeaningAnswer } from "../../source/contract";
import { wordOf } from "./moved";

/** How near an occurrence is to each sense after some layers. */
export function nearTo({ similarity: { data, shape } }: MeaningAnswer, layer: number, occurrence: number): number[] {
  const [, occurrences, senses] = shape as [number, number, number];
  const first = (layer * occurrences + occurrence) * senses;
  return Array.from(data.subarray(first, first + senses));
}

export function accuracyWords({ accuracy, chance, word }: MeaningAnswer): string {
  if (!accuracy?.length) return "";
  const ends = `${percent(accuracy[0] as number)} before the first layer and ${percent(accuracy.at(-1) as number)} after ${accuracy.length - 1}`;
  return `The nearest other “${word}” has the same sense in ${ends} layers; by chance in ${percent(chance)}.`;
}

export function movedWords(answer: MeaningAnswer, occurrence: number): string {
  const moved = answer.moved[occurrence];
  const first = moved?.movers[0];
  if (!first) return "";
  return `It was moved most towards ${moved.towards} by head ${first.head} of layer ${first.layer}, which read “${wordOf(first.word).word}” (${number(first.amount)}).`;
}

/** Columns and rows of a table: an occurrence after some layers in each row. */
export function rowsOf(answer: MeaningAnswer): [columns: string[], rows: (string | number)[][]] {
  const [layers, occurrences] = answer.projection.shape as [number, number];
  const columns = [
    "layer",
    "occurrence",
    "sense",
    "sentence",
    "first axis",
    "second axis",
    ...answer.senses.map((sense) => `similarity to ${sense}`),
  ];
  const rows = [];
  for (let layer = 0; layer < layers; layer++) {
    for (let i = 0; i < occurrences; i++) {
      const { label, sense, sentence } = answer.occurrences[i] as MeaningAnswer["occurrences"][number];
      const at = (layer * occurrences + i) * 2;
      const place = Array.from(answer.projection.data.subarray(at, at + 2));
      rows.push([layer, label, sense ?? "", sentence, ...place, ...nearTo(answer, layer, i)]);
    }
  }
  return [columns.map(quoted), rows];
}

/** The first row of a CSV is written as it is: a sense may hold what must be quoted. */
function quoted(column: string): string {
  return /[",\n\r]/.test(column) ? `"${column.replaceAll('"', '""')}"` : column;
}

/** All of it, arrays as nested lists. */
export function jsonOf(answer: MeaningAnswer): unknown {
  const [layers, occurrences] = answer.projection.shape as [number, number];
  const each = <T>(count: number, make: (i: number) => T) => Array.from({ length: count }, (_, i) => make(i));
  const place = (layer: number, i: number) =>
    Array.from(answer.projection.data.subarray((layer * occurrences + i) * 2, (layer * occurrences + i) * 2 + 2));
  return {
    ...answer,
    similarity: each(layers, (layer) => each(occurrences, (i) => nearTo(answer, layer, i))),
    projection: each(layers, (layer) => each(occurrences, (i) => place(layer, i))),
  };
}
