// Requests to the server.  An answer is kept in this browser until the server has said that it is on the disk.

const TOKEN = "lm-env-label:token";
const NAME = "lm-env-label:annotator";
const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 4000;

const memory = new Map(); // where a browser keeps nothing
export const kept = {
  get(key) {
    try { return localStorage.getItem(key); } catch { return memory.get(key) ?? null; }
  },
  set(key, value) {
    try { localStorage.setItem(key, value); } catch { memory.set(key, value); }
  },
  remove(key) {
    try { localStorage.removeItem(key); } catch { memory.delete(key); }
  },
};

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// Takes token and name out of the address, so that neither stays in the history, and keeps them.
export function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.get("token")) kept.set(TOKEN, given.get("token"));
  if (given.get("annotator")) kept.set(NAME, given.get("annotator"));
  if (location.hash) history.replaceState(null, "", location.pathname);
  return { token: kept.get(TOKEN), annotator: kept.get(NAME) };
}

export function keepName(name) {
  kept.set(NAME, name);
}

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Server {
  // waiting(message or null) is told when the server does not answer, and when it does again.
  constructor(token, waiting) {
    this.token = token;
    this.waiting = waiting;
    this.waits = false;
  }

  tell(trouble) {
    if (trouble || this.waits) this.waiting(trouble);
    this.waits = trouble !== null;
  }

  async call(name, content) {
    const response = await fetch(`/api/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${this.token}` },
      body: JSON.stringify(content),
    });
    const found = await response.json();
    if (!response.ok) throw new Refused(found.error, response.status);
    return found;
  }

  // Tries until there is an answer.  What the server refuses is thrown; what it could not do is tried again.
  async persist(name, content) {
    for (let wait = FIRST_WAIT_MS; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      try {
        const found = await this.call(name, content);
        this.tell(null);
        return found;
      } catch (error) {
        if (error instanceof Refused && error.status < 500) {
          this.tell(null);
          throw error;
        }
        this.tell(error instanceof Refused ? error.message : "the server does not answer");
        await new Promise((resume) => setTimeout(resume, wait));
      }
    }
  }
}

// The answer on its way, by file of labels and annotator; it is sent again if the page went away in between.
export class Outbox {
  constructor(store, annotator) {
    this.key = `lm-env-label:${store}:${annotator}`;
  }

  get() {
    try { return JSON.parse(kept.get(this.key)); } catch { return null; }
  }

  put(answer) {
    kept.set(this.key, JSON.stringify(answer));
  }

  clear() {
    kept.remove(this.key);
  }
}
