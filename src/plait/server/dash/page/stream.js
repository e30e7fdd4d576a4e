// The one stream of sheets. Over fetch, because EventSource cannot send a key.
const KEY = "plait-key"; // kept for this tab only

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: "Bearer " + key } : {};
}

// Calls onSheet(sheet) for each event and onLink(words) when the connection changes: "live", "key", or why not.
// Reconnects by itself, later and later, until `stop` is called.
export function watch(onSheet, onLink) {
  const control = new AbortController();
  let waitMs = 500;
  async function run() {
    while (!control.signal.aborted) {
      try {
        const reply = await fetch("/dash/events", { headers: headers(), signal: control.signal, cache: "no-store" });
        if (reply.status === 401) return onLink("key");
        if (!reply.ok) throw new Error("the server answers " + reply.status);
        onLink("live");
        waitMs = 500;
        await read(reply.body.getReader(), onSheet);
        throw new Error("the stream ended");
      } catch (error) {
        if (control.signal.aborted) return;
        onLink(error.message);
      }
      await new Promise((done) => setTimeout(done, waitMs));
      waitMs = Math.min(2 * waitMs, 8000);
    }
  }
  run();
  return { stop: () => control.abort() };
}

async function read(reader, onSheet) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = events.pop();
    // Of several that came at once only the newest is worth drawing.
    const data = events.map((event) => event.split("\n").find((line) => line.startsWith("data: "))).filter(Boolean);
    if (data.length) onSheet(JSON.parse(data[data.length - 1].slice(6)));
  }
}

// The sheet of an earlier moment of a recorded run.
export async function past(atUs) {
  const reply = await fetch("/dash/events?at=" + Math.round(atUs), { headers: headers(), cache: "no-store" });
  if (!reply.ok) throw new Error("the server answers " + reply.status);
  return reply.json();
}
