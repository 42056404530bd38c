/** What the lines of a text say, in sentences. */
import { listed, specialNames, type Units } from "../../model/words";
import { percent } from "../../parts/names";
import { PARTNERS, type Side } from "./rows";
import type { Choice, Partner, Shares } from "./selection";

/** What is told about. */
export interface Told {
  readonly units: Readonly<Record<Side, Units>>;
  /** The side whose words were asked: of the chosen ones, or of all in view. */
  readonly side: Side;
  readonly choice: Choice | null;
  /** null: there is no weight. */
  readonly shares: Shares | null;
  /** Whether special tokens are left out. */
  readonly ordinary: boolean;
}

/** What part of the weight the lines show, and where the rest goes. */
export function statementOf({ units, side, choice, shares, ordinary }: Told): string {
  const whose = whoseOf(units, choice);
  if (!shares) return `No weight of ${whose}: the mask hides all of it.`;
  const [goes, to] = side === "queries" ? ["goes", "to"] : ["comes", "from"];
  const receive = choice?.units.length === 1 ? "receives" : "receive";
  const total = side === "queries" ? `the weight of ${whose}` : `the weight that ${whose} ${receive}`;
  const said = [`Lines show ${percent(shares.drawn)} of ${total}`];
  const names = specialNames(units[side === "queries" ? "keys" : "queries"]);
  if (ordinary && names.length) said.push(`${percent(shares.special)} ${goes} ${to} ${listed(names)}, not shown`);
  if (shares.rest > 0)
    said.push(`${percent(shares.rest)} ${goes} ${to} weaker ones, beyond the ${PARTNERS} strongest of each word`);
  return `${said.join("; ")}.`;
}

function whoseOf(units: Told["units"], choice: Choice | null): string {
  if (!choice) return "the words in view";
  const said = listed(choice.units.map((unit) => `“${units[choice.side].labels[unit]}”`));
  return choice.units.length > 1 ? `${said} together` : said;
}

/** Where the chosen words look, or who looks at them: "bank looks at river 41%, the 8%". */
export function choiceInWords({ units, side }: Told, choice: Choice, partners: readonly Partner[]): string {
  const one = choice.units.length === 1;
  const verb = side === "queries" ? (one ? "looks at" : "look at") : one ? "is looked at by" : "are looked at by";
  const others = units[side === "queries" ? "keys" : "queries"].labels;
  const said = partners.slice(0, 5).map(({ unit, weight }) => `${others[unit]} ${percent(weight)}`);
  const chosen = choice.units.map((unit) => units[side].labels[unit] as string);
  return `${listed(chosen)} ${verb} ${said.join(", ") || "nothing"}.`;
}
