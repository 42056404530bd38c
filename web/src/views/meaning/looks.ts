/**
 * How senses look: by colour and by the form of their marks, so that colour is not alone. The colours are Okabe and Ito's
 * (https://jfly.uni-koeln.de/color), darker on a light ground and lighter on a dark one, so that words in them can be read.
 */

const COLOURS = [
  "light-dark(#0063a3, #6fb7f2)",
  "light-dark(#b04600, #ff9d62)",
  "light-dark(#00704f, #4fd3a4)",
  "light-dark(#9c3f78, #f2a5d2)",
  "light-dark(#7d5a00, #ecc94b)",
  "light-dark(#22748f, #a5e1fa)",
] as const;

/** Of an unknown sense. */
const NEUTRAL = "var(--ink)";

/** Marks around 0, about 10 pixels large: seven forms, so that colour and form together repeat after 42 senses. */
const FORMS = [
  "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z",
  "M-4.4 -4.4H4.4V4.4H-4.4Z",
  "M0 -6.2L6.2 0L0 6.2L-6.2 0Z",
  "M0 -5.8L5.6 4.2H-5.6Z",
  "M0 5.8L5.6 -4.2H-5.6Z",
  "M-1.9 -5.6H1.9V-1.9H5.6V1.9H1.9V5.6H-1.9V1.9H-5.6V-1.9H-1.9Z",
  "M-2.6 -5.6H2.6L5.6 0L2.6 5.6H-2.6L-5.6 0Z",
] as const;

const STAR = star(9, 3.6);

function star(outer: number, inner: number): string {
  const corners = Array.from({ length: 10 }, (_, i) => {
    const angle = (i * Math.PI) / 5 - Math.PI / 2;
    const radius = i % 2 ? inner : outer;
    return `${(radius * Math.cos(angle)).toFixed(2)} ${(radius * Math.sin(angle)).toFixed(2)}`;
  });
  return `M${corners.join("L")}Z`;
}

export interface LookOf {
  colour: string;
  /** Path of its mark, around 0. */
  form: string;
  name: string;
}

/** How a sense looks; that of -1 is not known. */
export function lookOf(senses: readonly string[], sense: string | null): LookOf {
  const number = sense === null ? -1 : senses.indexOf(sense);
  if (number < 0) return { colour: NEUTRAL, form: STAR, name: "to be found out" };
  return {
    colour: COLOURS[number % COLOURS.length] as string,
    form: FORMS[number % FORMS.length] as string,
    name: sense as string,
  };
}
