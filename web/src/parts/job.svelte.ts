/**
 * A job that a view runs: how far it is, what it answered, why it failed. A new run gives up the one before it, and what
 * was answered once is kept as long as the page is open: to come back to a view must not cost the work again.
 */
import { type Jobs, type Progress, type Source, SourceError } from "../source/contract";
import { messageOf } from "./names";

const MOST_KEPT = 8;
const kept = new WeakMap<Source, Map<string, unknown>>();

export class Job<J extends keyof Jobs> {
  /** null while there is none: before the first run, while one runs, and after one that failed. */
  answer: Jobs[J][1] | null = $state.raw(null);
  /** null when nothing runs. */
  progress: Progress | null = $state.raw(null);
  error = $state("");
  /** Whether the last run was stopped by hand. */
  stopped = $state(false);
  private current: AbortController | null = null;

  constructor(
    private readonly source: Source,
    private readonly name: J,
  ) {}

  /** Run it, or take the answer that is kept; `anew` runs it in any case. */
  async run(parameters: Jobs[J][0], anew = false): Promise<void> {
    this.giveUp();
    const name = `${this.name} ${JSON.stringify(parameters)}`;
    this.error = "";
    this.stopped = false;
    this.answer = anew ? null : ((keptOf(this.source).get(name) as Jobs[J][1] | undefined) ?? null);
    if (this.answer) return;
    const mine = new AbortController();
    this.current = mine;
    this.progress = { share: 0, what: "waiting for its turn" };
    const progress = (now: Progress) => {
      if (this.current === mine) this.progress = now;
    };
    try {
      const answer = await this.source.run(this.name, parameters, { signal: mine.signal, progress });
      keep(this.source, name, answer);
      if (this.current === mine) this.answer = answer;
    } catch (error) {
      if (this.current === mine) this.error = said(error);
    } finally {
      if (this.current === mine) this.giveUp();
    }
  }

  /** Stop it by hand. */
  stop(): void {
    if (!this.current) return;
    this.giveUp();
    this.stopped = true;
  }

  /** Give up what runs; nothing is said about it. */
  giveUp(): void {
    const running = this.current;
    this.current = null;
    this.progress = null;
    running?.abort();
  }
}

function keptOf(source: Source): Map<string, unknown> {
  const known = kept.get(source) ?? new Map<string, unknown>();
  kept.set(source, known);
  return known;
}

function keep(source: Source, name: string, answer: unknown): void {
  const answers = keptOf(source);
  answers.delete(name); // the newest is the last
  answers.set(name, answer);
  const oldest = answers.keys().next().value;
  if (answers.size > MOST_KEPT && oldest !== undefined) answers.delete(oldest);
}

/** What went wrong, as a sentence. */
export function said(error: unknown): string {
  if (error instanceof SourceError) return error.message;
  return `Something unexpected happened: ${messageOf(error)}`;
}
