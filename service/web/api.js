// The service's API: one key, one way to be refused, and items that are asked for once.

export const session = { key: sessionStorage.getItem("key") ?? "", onUnauthorized: () => {} };

// Status 0: nothing answered.
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `HTTP ${status}`);
    this.status = status;
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
    throw new Refused(answer.status, members);
  }
  return members;
}

const items = new Map();

export function forgetItem(itemId) {
  items.delete(itemId);
}

export async function item(itemId) {
  if (itemId === null) return null;
  if (!items.has(itemId)) {
    items.set(itemId, api("GET", `v1/items/${encoded(itemId)}`).catch((error) => {
      items.delete(itemId);
      return error.status === 404 ? { item_id: itemId, title: "", tags: [], sid: [], gone: true } : { item_id: itemId, title: "", tags: [], sid: [] };
    }));
  }
  return items.get(itemId);
}
