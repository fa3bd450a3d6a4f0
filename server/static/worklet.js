// The microphone's samples, in frames of 20 ms: 16-bit integers at the browser's own rate, with their level.

const FRAME_SECONDS = 0.02;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.frame = new Int16Array(Math.round(sampleRate * FRAME_SECONDS));
    this.filled = 0;
    this.energy = 0;
    this.live = true;
    this.port.onmessage = () => this.finish();
  }

  process([channels]) {
    if (!this.live) return false;
    const length = channels.length ? channels[0].length : 0;
    for (let i = 0; i < length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.take(sum / channels.length);
    }
    return true;
  }

  take(value) {
    const clipped = Math.max(-1, Math.min(1, value));
    this.frame[this.filled++] = Math.round(clipped * (clipped < 0 ? 32768 : 32767)); // as Chromium makes them
    this.energy += clipped * clipped;
    if (this.filled === this.frame.length) this.post();
  }

  post() {
    const samples = this.frame.slice(0, this.filled);
    const level = Math.sqrt(this.energy / Math.max(1, this.filled));
    this.filled = this.energy = 0;
    this.port.postMessage({ samples, level }, [samples.buffer]);
  }

  finish() {
    this.live = false;
    if (this.filled) this.post();
    this.port.postMessage({ finished: true });
  }
}

registerProcessor("capture", Capture);
