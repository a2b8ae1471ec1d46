// How the page asks its node: the API that everybody has, with the token that its user gave. A token stays in this tab.

const tokenKey = "grange-token";
const patience = 30_000; // of one question, in ms: a list of a whole mesh asks its members
let token = sessionStorage.getItem(tokenKey) ?? "";

// Problem is what the node refuses, in its words.
export class Problem extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// Away says that nobody answers.
export class Away extends Error {}

export const hasToken = () => token !== "";

export function keepToken(text) {
  token = text;
  if (text) sessionStorage.setItem(tokenKey, text);
  else sessionStorage.removeItem(tokenKey);
}

// send asks and returns the answer as it comes; what is refused is a Problem.
export async function send(path, {method = "GET", headers = {}, signal} = {}) {
  const shown = token;
  let answer;
  try {
    answer = await fetch(path, {method, headers: shown ? {...headers, Authorization: `Bearer ${shown}`} : headers, signal, cache: "no-store", credentials: "omit", redirect: "error"});
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Away("no answer");
  }
  if (answer.ok || answer.status === 304) return answer;
  if (answer.status === 401 && shown !== token) return send(path, {method, headers, signal}); // there is another by now
  const problem = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, problem.detail ?? `the node answered ${answer.status}`);
}

// ask returns a document.
export async function ask(path, options = {}) {
  const signal = AbortSignal.any([AbortSignal.timeout(patience), ...(options.signal ? [options.signal] : [])]);
  const answer = await send(path, {...options, signal}).catch((e) => {
    throw signal.reason?.name === "TimeoutError" ? new Away("no answer in time") : e;
  });
  if (answer.status === 204) return null;
  return answer.json();
}

// page asks for one page of a list: its rows, what the next page comes behind, how many there are, and the tag of all that.
export async function page(path, query, tag, signal) {
  const params = new URLSearchParams(Object.entries(query).filter(([, v]) => v !== "" && v !== undefined));
  const answer = await send(`${path}${path.includes("?") ? "&" : "?"}${params}`, {signal, headers: tag ? {"If-None-Match": tag} : {}});
  if (answer.status === 304) return null;
  const next = /^<([^>]*)>/.exec(answer.headers.get("Link") ?? "");
  return {
    rows: await answer.json(),
    after: next ? new URLSearchParams(next[1]).get("after") : null,
    total: answer.headers.get("X-Total-Count"),
    tag: answer.headers.get("ETag"),
  };
}

// events calls each with the kind and the data of every event of a stream, until that ends. A browser's own EventSource can
// show no token.
export async function events(path, signal, each) {
  const answer = await send(path, {signal});
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const fields = Object.fromEntries(text.slice(0, end).split("\n").map((line) => {
        const at = line.indexOf(": ");
        return [line.slice(0, at), line.slice(at + 2)];
      }));
      text = text.slice(end + 2);
      each(fields.event, JSON.parse(fields.data));
    }
  }
}
