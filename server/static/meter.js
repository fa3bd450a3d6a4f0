// The level of the sound, as bars that move outwards from the button in the middle.

const FRAMES_PER_BAR = 3;
const FLOOR_DB = -54;
const SILENT_DB = -80;
const PITCH = 11; // canvas pixels from bar to bar
const WIDTH = 5;

/** Draws on a canvas whose middle `gap` pixels stay free. `push(level)` with each frame's root mean square, 0 to 1. */
export class Meter {
  #canvas;
  #gap;
  #bars; // newest first
  #frames = [];
  #drawing = 0;
  /** Milliseconds for which there has been no sound at all. */
  silentMs = 0;

  constructor(canvas, gap) {
    this.#canvas = canvas;
    this.#gap = gap;
    this.reset();
  }

  reset() {
    const count = Math.floor((this.#canvas.width - this.#gap) / 2 / PITCH);
    this.#bars = new Array(count).fill(0);
    this.silentMs = 0;
    this.#soon();
  }

  push(level) {
    const db = 20 * Math.log10(Math.max(level, 1e-6));
    this.silentMs = db < SILENT_DB ? this.silentMs + 20 : 0;
    this.#frames.push(Math.max(0, Math.min(1, 1 - db / FLOOR_DB)) ** 1.6);
    if (this.#frames.length < FRAMES_PER_BAR) return;
    this.#bars.unshift(Math.max(...this.#frames));
    this.#bars.pop();
    this.#frames = [];
    this.#soon();
  }

  /** Once a frame of the screen at most. */
  #soon() {
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      this.draw();
    });
  }

  /** Also to be called when the colours have changed. */
  draw() {
    const { width, height } = this.#canvas;
    const context = this.#canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(this.#canvas).color;
    this.#bars.forEach((bar, i) => {
      const tall = Math.max(WIDTH, bar * height);
      const away = this.#gap / 2 + i * PITCH;
      context.globalAlpha = (bar ? 0.9 : 0.28) * (1 - (0.8 * i) / this.#bars.length);
      context.beginPath();
      for (const x of [width / 2 + away, width / 2 - away - WIDTH]) {
        context.roundRect(x, (height - tall) / 2, WIDTH, tall, WIDTH / 2);
      }
      context.fill();
    });
  }
}
