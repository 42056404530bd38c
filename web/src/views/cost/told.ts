/** A cost in words, and as rows to save. */
import { bytes, counted, grouped, seconds } from "../../parts/chart";
import { type Cost, entries, LONGEST, longestThatFits, ORIGINS, powers, type Quantity, type Said, WAYS } from "./cost";

/** Memories that people know, in bytes. */
export const MEMORIES = [
  { value: 16e9, name: "laptop, 16 GB" },
  { value: 80e9, name: "GPU, 80 GB" },
] as const;

/** How many times as much, with as many digits as say something. */
export function times(share: number): string {
  return share >= 10 ? grouped(share) : String(Number(share.toPrecision(2)));
}

/** An amount with where it comes from. */
export function told(said: Said, quantity: Quantity): string {
  return `${(quantity === "bytes" ? bytes : seconds)(said.value)} (${ORIGINS[said.origin]})`;
}

/** What attention costs at a length, in whole sentences. */
export function sentences(cost: Cost, length: number): string {
  const stored = cost.at("stored", "bytes", length) as Said;
  const ours = cost.at("ours", "bytes", length);
  const time = { stored: cost.at("stored", "seconds", length), ours: cost.at("ours", "seconds", length) };
  const gpu = MEMORIES[1];
  const said = [
    `At ${grouped(length)} tokens each head’s pattern has ${counted(entries(1, length))} entries.`,
    `Stored, those of this layer alone need ${bytes(stored.value)}${stored.value > gpu.value ? `, ${times(stored.value / gpu.value)} times what a GPU of 80 GB holds` : ""}${ours ? `; ours needs ${told(ours, "bytes")}` : ""}.`,
  ];
  if (time.stored && time.ours)
    said.push(`Storing it takes ${told(time.stored, "seconds")}, ours ${told(time.ours, "seconds")}.`);
  return said.join(" ");
}

/** How far memories reach. */
export function reach(cost: Cost): string {
  const told = MEMORIES.map(
    ({ value }) => `${bytes(value)} hold that of ${grouped(longestThatFits(cost.heads, cost.itemsize, value))} tokens`,
  );
  return `${told.join(", ")}, and nothing else.`;
}

/** Columns and rows of a table: a number in each row, and where it comes from. */
export function rowsOf(cost: Cost): [columns: string[], rows: (string | number)[][]] {
  const measured = (cost.answer?.points ?? []).map((point) => point.length);
  const lengths = [...new Set([...measured, ...powers(2, [16, LONGEST])])].sort((a, b) => a - b);
  const rows = lengths.flatMap((length) =>
    (["stored", "ours"] as const).flatMap((way) =>
      (["bytes", "seconds"] as const).flatMap((quantity) => {
        const point = cost.points(way, quantity).find(([at]) => at === length);
        const line = cost.at(way, quantity, length);
        const made = point ? [[length, WAYS[way].name, quantity, point[1], ORIGINS.measured]] : [];
        if (line && line.origin !== "measured")
          made.push([length, WAYS[way].name, quantity, line.value, ORIGINS[line.origin]]);
        return made;
      }),
    ),
  );
  return [["tokens", "way", "quantity", "amount", "origin"], rows];
}
