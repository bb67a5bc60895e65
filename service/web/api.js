// The service's API: one key, one way to be refused, and items that are asked for once.

export const session = { key: "", onUnauthorized: () => {} };

// What a header can carry; `fetch` throws at anything else.
export const isKey = (text) => /^[\x21-\x7e]*$/.test(text);

export function useKey(key) {
  session.key = key;
  sessionStorage.setItem("key", key);
}

const kept = sessionStorage.getItem("key") ?? "";
if (isKey(kept)) session.key = kept;

// Status 0: nothing answered.
export class Refused extends Error {
  constructor(status, problem, retryAfterS = 0) {
    super(problem.detail ?? problem.title ?? `HTTP ${status}`);
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.problem = problem;
  }
}

export const encoded = (id) => id.split("/").map(encodeURIComponent).join("/");

export async function api(method, path, body) {
  const { key } = session;
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused(0, { detail: "The service does not answer." });
  }
  if (answer.status === 204) return null;
  const members = await answer.json().catch(() => ({})); // what stands before the service may answer in its own form
  if (!answer.ok) {
    if (answer.status === 401 && key === session.key) session.onUnauthorized();
    throw new Refused(answer.status, members, Number(answer.headers.get("Retry-After")) || 0);
  }
  return members;
}

// --- items: a slate and a history name more of them than a key with a rate may ask for at once ---

const AT_ONCE = 6;
const PATIENCE_MS = 8000;
const items = new Map();
const waiting = [];
let asking = 0;
let pausedUntil = 0;

export function forgetItem(itemId) {
  items.delete(itemId);
}

export function forgetItems() {
  items.clear();
}

// Never throws: `trouble` says why an item is not known.
export async function item(itemId) {
  if (itemId === null) return null;
  if (!items.has(itemId)) items.set(itemId, lookedUp(itemId));
  const promise = items.get(itemId);
  const found = await promise;
  if (found.trouble && items.get(itemId) === promise) items.delete(itemId); // it may be known the next time
  return found;
}

async function lookedUp(itemId) {
  const unknown = { item_id: itemId, title: "", tags: [], sid: [] };
  const givenUpAt = performance.now() + PATIENCE_MS;
  for (;;) {
    if (asking >= AT_ONCE) await new Promise((go) => waiting.push(go));
    asking += 1;
    try {
      const pauseMs = pausedUntil - performance.now();
      if (pauseMs > 0) await new Promise((go) => setTimeout(go, pauseMs));
      return await api("GET", `v1/items/${encoded(itemId)}`);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 404) return { ...unknown, gone: true };
      const againAt = performance.now() + error.retryAfterS * 1000;
      if (!error.retryAfterS || ![429, 503].includes(error.status) || againAt > givenUpAt) return { ...unknown, trouble: error.message };
      pausedUntil = Math.max(pausedUntil, againAt);
    } finally {
      asking -= 1;
      waiting.pop()?.(); // the newest first: what is looked at now
    }
  }
}
