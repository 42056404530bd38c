/**
 * Answers from a notebook's kernel, as messages of the widget (`src/saccade/jupyter.py` is the other end).
 *
 * All displays of a widget share one model, and each hears what the others are told: the number says whose it is.
 */
import { type Jobs, type Progress, type Questions, type Source, SourceError } from "./contract";
import { unpack } from "./parcel";

/** What of a widget's model the page uses: the interface of anywidget. */
export interface WidgetModel {
  send(content: unknown): void;
  on(event: string, heard: (...said: never[]) => void): void;
  off(event: string, heard: (...said: never[]) => void): void;
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
}

type Message = { number: string; kind: "progress" | "result" | "error"; message?: string } & Partial<Progress>;

interface Waiting {
  done: (answer: unknown) => void;
  failed: (error: Error) => void;
  progress: ((progress: Progress) => void) | undefined;
}

export class WidgetSource implements Source {
  private readonly waiting = new Map<string, Waiting>();
  private readonly mine = `${String(Math.random()).slice(2)}-`;
  private sent = 0;

  constructor(private readonly model: WidgetModel) {
    model.on("msg:custom", this.hear as never);
  }

  ask<Q extends keyof Questions>(
    question: Q,
    parameters: Questions[Q][0],
    signal?: AbortSignal,
  ): Promise<Questions[Q][1]> {
    return this.send("question", question, parameters, signal);
  }

  run<J extends keyof Jobs>(
    job: J,
    parameters: Jobs[J][0],
    { signal, progress }: { signal?: AbortSignal; progress?: (progress: Progress) => void } = {},
  ): Promise<Jobs[J][1]> {
    return this.send("job", job, parameters, signal, progress);
  }

  /** Stop listening; what still waits is given up on both sides. */
  close(): void {
    this.model.off("msg:custom", this.hear as never);
    for (const number of [...this.waiting.keys()])
      this.giveUp(number, new DOMException("The widget is gone.", "AbortError"));
  }

  private async send<T>(
    kind: "question" | "job",
    name: string,
    parameters: unknown,
    signal?: AbortSignal,
    progress?: (progress: Progress) => void,
  ): Promise<T> {
    signal?.throwIfAborted();
    const number = this.mine + this.sent++;
    const abort = () => this.giveUp(number, signal?.reason as Error);
    signal?.addEventListener("abort", abort);
    try {
      return await new Promise<T>((done, failed) => {
        this.waiting.set(number, { done: done as (answer: unknown) => void, failed, progress });
        this.model.send({ number, kind, name, parameters });
      });
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  private giveUp(number: string, reason: Error): void {
    const waiting = this.waiting.get(number);
    if (!this.waiting.delete(number)) return;
    this.model.send({ number, kind: "cancel" });
    waiting?.failed(reason);
  }

  private readonly hear = (message: Message, buffers?: (ArrayBuffer | ArrayBufferView)[]): void => {
    const waiting = this.waiting.get(message.number);
    if (!waiting) return;
    if (message.kind === "progress") {
      waiting.progress?.({ share: message.share ?? 0, what: message.what ?? "" });
      return;
    }
    this.waiting.delete(message.number);
    const parcel = buffers?.[0];
    if (message.kind === "error" || !parcel) waiting.failed(new SourceError(message.message ?? "The kernel failed."));
    else settle(waiting, parcel);
  };
}

function settle({ done, failed }: Waiting, parcel: ArrayBuffer | ArrayBufferView): void {
  try {
    done(unpack(alone(parcel)));
  } catch (error) {
    failed(new SourceError(`The kernel’s answer cannot be read (${error}).`));
  }
}

/** The bytes by themselves: a notebook's buffers may lie anywhere in a larger one, and arrays have to be aligned. */
function alone(bytes: ArrayBuffer | ArrayBufferView): ArrayBuffer {
  if (bytes instanceof ArrayBuffer) return bytes;
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
}
