// Sound in: the microphone, and media files.

const FILE_RATE = 16000; // what recognition hears: more would only take longer to send
const GESTURE_MS = 2000; // a sound system that has not begun by then waits for a click
const HIGHEST_RATE = 48000; // that servers take

/** Something is wrong with the sound; `code` is denied, missing, busy, insecure, gesture or file. */
export class CaptureError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const REASONS = {
  NotAllowedError: ["denied", "The microphone is blocked. Allow it in the browser's address bar, then try again."],
  NotFoundError: ["missing", "No microphone was found. Connect one, then try again."],
  OverconstrainedError: ["missing", "The chosen microphone is not there. Choose another one in the options."],
  GestureError: ["gesture", "Click on the page: browsers let no page listen before that."],
  NotReadableError: ["busy", "The microphone cannot be read. Another program may be using it."],
};

/** A microphone, in frames of 20 ms at the browser's own rate. Open it in answer to a click or a key. */
export class Microphone {
  #context;
  #media;
  #node;
  #done = () => {};
  /** Called with (samples: Int16Array, level: 0 to 1, root mean square). */
  onaudio = null;
  /** Called when the device goes away by itself. */
  onlost = null;

  /** Ask for the microphone. Throws CaptureError. */
  static async open({ deviceId = "" } = {}) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new CaptureError("insecure", "Browsers give the microphone only to https pages and to localhost.");
    }
    const microphone = new Microphone();
    try {
      await microphone.#open(deviceId);
    } catch (error) {
      await microphone.stop();
      throw new CaptureError(...(REASONS[error.name] ?? ["busy", `The microphone cannot be opened: ${error.message}`]));
    }
    return microphone;
  }

  /** Samples a second. */
  get sampleRate() {
    return this.#context.sampleRate;
  }

  /** The device's name. */
  get label() {
    return this.#media?.getAudioTracks()[0]?.label ?? "";
  }

  async #open(deviceId) {
    // What helps a listener, echo cancelling and noise suppression, takes sounds away that recognition needs.
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
    if (deviceId) audio.deviceId = { exact: deviceId };
    this.#media = await navigator.mediaDevices.getUserMedia({ audio });
    this.#context = new AudioContext({ latencyHint: "interactive" });
    if (this.#context.sampleRate > HIGHEST_RATE) {
      await this.#context.close();
      this.#context = new AudioContext({ latencyHint: "interactive", sampleRate: HIGHEST_RATE });
    }
    await this.#context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    this.#node = new AudioWorkletNode(this.#context, "capture", { numberOfOutputs: 0 });
    this.#node.port.onmessage = ({ data }) => this.#heard(data);
    this.#media.getAudioTracks()[0].addEventListener("ended", () => this.onlost?.());
    await Promise.race([this.#context.resume(), new Promise((resolve) => setTimeout(resolve, GESTURE_MS))]);
    if (this.#context.state !== "running") throw new DOMException("", "GestureError");
  }

  /** From here on, `onaudio` is called. */
  start(onaudio = this.onaudio) {
    this.onaudio = onaudio;
    this.#context.createMediaStreamSource(this.#media).connect(this.#node);
  }

  #heard({ samples, level, finished }) {
    if (finished) this.#done();
    else this.onaudio?.(samples, level);
  }

  /** Give the device back. What was captured before comes first. */
  async stop() {
    if (this.#node && this.#context.state === "running") {
      const last = new Promise((resolve) => (this.#done = resolve));
      this.#node.port.postMessage("finish");
      await Promise.race([last, new Promise((resolve) => setTimeout(resolve, 500))]);
    }
    this.onaudio = this.onlost = null;
    for (const track of this.#media?.getTracks() ?? []) track.stop();
    if (this.#context && this.#context.state !== "closed") await this.#context.close();
  }
}

/** The sound of a media file as {samples: Int16Array, sampleRate}, mono. Throws CaptureError. */
export async function readFile(file) {
  try {
    const decoder = new OfflineAudioContext(1, 1, FILE_RATE);
    const audio = await decoder.decodeAudioData(await file.arrayBuffer());
    return { samples: toMono(audio), sampleRate: audio.sampleRate };
  } catch {
    throw new CaptureError("file", `${file.name || "The file"} holds no sound that this browser can read.`);
  }
}

function toMono(audio) {
  const channels = Array.from({ length: audio.numberOfChannels }, (_, i) => audio.getChannelData(i));
  const samples = new Int16Array(audio.length);
  for (let i = 0; i < samples.length; i++) {
    let sum = 0;
    for (const channel of channels) sum += channel[i];
    const value = Math.max(-1, Math.min(1, sum / channels.length));
    samples[i] = Math.round(value * (value < 0 ? 32768 : 32767)); // as Chromium makes them: so 16 bits stay the same
  }
  return samples;
}
