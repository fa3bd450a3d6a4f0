// What the user chooses: kept in this browser, except the token, which is kept in the tab.

const $ = (id) => document.getElementById(id);
const KEPT = { device: "", hotwords: "", pause: "", lm: true, shade: true };

/** The dialog of options. `onchange` is called when one that matters to a running stream has changed. */
export class Options {
  #dialog = $("options");

  constructor(onchange) {
    this.#load();
    for (const id of Object.keys(KEPT)) {
      $(id).addEventListener("change", () => {
        this.#save();
        if (id !== "device" && id !== "shade") onchange(this.protocol);
      });
    }
    $("open-options").addEventListener("click", () => this.open());
    closeOnBackdrop(this.#dialog);
  }

  get device() {
    return $("device").value;
  }

  /** As keys of the protocol's `config`. */
  get protocol() {
    const pause = $("pause").value;
    const lines = $("hotwords").value.split("\n").map((line) => line.trim()).filter(Boolean);
    return {
      hotwords: lines.map((text) => ({ text })),
      endpointing: pause === "never" ? false : pause ? { pause_s: Number(pause) } : true,
      lm: $("lm").checked ? "default" : "none",
    };
  }

  open() {
    this.listDevices();
    this.#dialog.showModal();
  }

  /** Their names are known once the microphone has been allowed. */
  async listDevices() {
    const all = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    const inputs = all.filter((d) => d.kind === "audioinput" && d.deviceId && d.deviceId !== "default");
    const chosen = $("device").value || this.#read().device;
    const items = inputs.map((d, i) => new Option(d.label || `Microphone ${i + 1}`, d.deviceId));
    $("device").replaceChildren($("device").options[0], ...items);
    $("device").value = inputs.some((d) => d.deviceId === chosen) ? chosen : "";
  }

  describe({ name, words, latency_ms }) {
    const count = words ? `${words.toLocaleString("en")} words, ` : "";
    $("model").textContent = `Model “${name}”: ${count}${Math.round(latency_ms)} ms of look-ahead.`;
  }

  #read() {
    try {
      return { ...KEPT, ...JSON.parse(localStorage.getItem("options") ?? "{}") };
    } catch {
      return KEPT;
    }
  }

  #load() {
    const kept = this.#read();
    for (const [id, value] of Object.entries(kept)) {
      if (!(id in KEPT)) continue;
      if ($(id).type === "checkbox") $(id).checked = value === true;
      else $(id).value = String(value);
    }
    if ($("pause").selectedIndex < 0) $("pause").value = "";
    if ($("device").selectedIndex < 0) $("device").value = "";
    this.#show();
  }

  #save() {
    const values = Object.keys(KEPT).map((id) => [id, $(id).type === "checkbox" ? $(id).checked : $(id).value]);
    try {
      localStorage.setItem("options", JSON.stringify(Object.fromEntries(values)));
    } catch {
      // Storage may be forbidden: then they hold until the page is closed.
    }
    this.#show();
  }

  #show() {
    document.body.classList.toggle("no-shade", !$("shade").checked);
  }
}

/** The server's token; asked for when the server wants one. */
export class Token {
  #dialog = $("token-dialog");
  value = "";

  constructor() {
    try {
      this.value = sessionStorage.getItem("token") ?? "";
    } catch {
      // Storage may be forbidden.
    }
    $("token-cancel").addEventListener("click", () => this.#dialog.close(""));
  }

  /** A promise of whether there is one now. */
  ask() {
    $("token").value = "";
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
    return new Promise((resolve) => {
      this.#dialog.addEventListener("close", () => resolve(this.#take(this.#dialog.returnValue)), { once: true });
    });
  }

  #take(answer) {
    if (answer !== "ok") return false;
    this.value = $("token").value.trim();
    try {
      sessionStorage.setItem("token", this.value);
    } catch {
      // As above.
    }
    return Boolean(this.value);
  }
}

/** The button that turns light into dark and back; `onchange` when either begins. */
export function themeSwitch(onchange) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => {
    $("theme").setAttribute("aria-pressed", String(dark()));
    onchange();
  };
  $("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try {
      if (dark() === system.matches) localStorage.removeItem("theme");
      else localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // Storage may be forbidden: then it holds until the page is closed.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}

function closeOnBackdrop(dialog) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
