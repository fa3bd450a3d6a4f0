// Audio that may have to be sent again. Positions are samples from the start of the stream, on the client's clock.

/** The latest `limit` samples of a stream, in chunks. */
export class Backlog {
  #chunks = []; // {start, samples, time}
  #limit;
  start = 0; // the first sample that is still here
  end = 0;

  constructor(limit) {
    this.#limit = limit;
  }

  /** Add samples (Int16Array) that were captured at `time` (ms). The oldest beyond the limit go. */
  push(samples, time) {
    if (!samples.length) return;
    this.#chunks.push({ start: this.end, samples, time });
    this.end += samples.length;
    while (this.end - this.start > this.#limit && this.#chunks.length > 1) this.#shift();
  }

  /** Whole chunks before `position` are not needed any more. */
  forget(position) {
    while (this.#chunks.length > 1 && this.#chunks[1].start <= position) this.#shift();
  }

  /** The samples from `position` to the end of their chunk; an empty array at the end. */
  at(position) {
    const chunk = this.#find(position);
    return chunk ? chunk.samples.subarray(position - chunk.start) : new Int16Array(0);
  }

  /** When the sample at `position` was captured (ms); undefined if it is not here. */
  timeOf(position) {
    return this.#find(position)?.time;
  }

  #shift() {
    this.#chunks.shift();
    this.start = this.#chunks[0].start;
  }

  #find(position) {
    const chunks = this.#chunks;
    if (!chunks.length || position < this.start || position >= this.end) return undefined;
    let low = 0;
    for (let high = chunks.length - 1; low < high; ) {
      const middle = (low + high + 1) >> 1;
      if (chunks[middle].start <= position) low = middle;
      else high = middle - 1;
    }
    return chunks[low];
  }
}

/** Where a server's samples lie on the client's clock. They are the same until audio is lost or a session is new. */
export class Alignment {
  #pieces = [{ server: 0, client: 0 }];

  /** From the server's sample `server` on, it gets the client's samples from `client` on. */
  join(server, client) {
    this.#pieces = this.#pieces.filter((piece) => piece.server < server);
    this.#pieces.push({ server, client });
  }

  /** The client's sample that the server knows as `server`. */
  toClient(server) {
    const piece = this.#pieces.findLast((p) => p.server < server) ?? this.#pieces[0];
    return piece.client + server - piece.server;
  }
}
