/** Answers from a notebook's kernel, as messages of the widget (`src/saccade/jupyter.py` is the other end). */
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

type Message = { id: string; kind: "progress" | "result" | "error"; message?: string } & Partial<Progress>;

interface Waiting {
  done: (answer: unknown) => void;
  failed: (error: Error) => void;
  progress?: (progress: Progress) => void;
}

export class WidgetSource implements Source {
  private readonly waiting = new Map<string, Waiting>();

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

  /** Stop listening; what still waits is given up. */
  close(): void {
    this.model.off("msg:custom", this.hear as never);
    for (const { failed } of this.waiting.values()) failed(new DOMException("The widget is gone.", "AbortError"));
    this.waiting.clear();
  }

  private send<T>(
    kind: "question" | "job",
    name: string,
    parameters: unknown,
    signal?: AbortSignal,
    progress?: (progress: Progress) => void,
  ): Promise<T> {
    signal?.throwIfAborted();
    const id = crypto.randomUUID();
    return new Promise<T>((done, failed) => {
      this.waiting.set(id, { done: done as (answer: unknown) => void, failed, ...(progress && { progress }) });
      signal?.addEventListener("abort", () => {
        if (!this.waiting.delete(id)) return;
        this.model.send({ id, kind: "cancel" });
        failed(signal.reason as Error);
      });
      this.model.send({ id, kind, name, parameters });
    });
  }

  /** Messages of other pages of the same widget come by as well: their ids are not ours. */
  private readonly hear = (message: Message, buffers: DataView[]): void => {
    const waiting = this.waiting.get(message.id);
    if (!waiting) return;
    if (message.kind === "progress") {
      waiting.progress?.({ share: message.share ?? 0, what: message.what ?? "" });
      return;
    }
    this.waiting.delete(message.id);
    const bytes = buffers?.[0];
    if (message.kind === "error" || !bytes) waiting.failed(new SourceError(message.message ?? "The kernel failed."));
    else waiting.done(unpack(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer));
  };
}
