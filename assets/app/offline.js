// Without a connection: what is sent waits until the server answers again, and the page says so. Gradio itself would load
// the page anew then, and all that was written, chosen and run would be gone.
const send = window.fetch.bind(window);
const address = (path) => new URL(path, document.baseURI);
const WAITS = /\/gradio_api\/(queue\/(join|data)|run\/\w+|upload|cancel|reset)\/?$/; // the rest is asked again by whoever asks
const AGAIN = 2000; // milliseconds until the server is asked once more
const LOST = "The connection to the server was lost.";
let session = null,
  attended = false;
let away = null; // settles when the server answers again

async function answers() {
  try {
    return (await send(address("health"), { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}
function pause() {
  return new Promise((resolve) => {
    setTimeout(resolve, AGAIN);
    window.addEventListener("online", resolve, { once: true });
  });
}
function back() {
  away ??= (async () => {
    element.querySelector('[data-part="offline"]').hidden = false;
    while (!navigator.onLine || !(await answers())) await pause();
    element.querySelector('[data-part="offline"]').hidden = true;
    away = null;
    attend();
  })();
  return away;
}

// The server keeps a session for as long as this is read; the one that Gradio opened may have ended.
async function attend() {
  if (!session || attended) return;
  attended = true;
  try {
    const response = await send(address(`gradio_api/heartbeat/${session}`));
    if (!response.ok) return;
    for (const reader = response.body.getReader(); !(await reader.read()).done;);
  } catch {
    /* as if it had ended */
  }
  attended = false;
  await pause();
  back();
}

// What was sent to the queue and has not come to its end: the server closes a session's events once it has no more of
// them to wait for, and what is sent at that very moment would never be listened for.
const waiting = new Set(),
  early = new Set(); // early: the end came before the answer that says what it is called
async function joined(response) {
  const { event_id: id } = await response.clone().json();
  if (!early.delete(id)) waiting.add(id);
  await new Promise((resolve) => setTimeout(resolve)); // who reads the events hears of their end before
}
function heed(events) {
  for (const text of events.split("\n\n").filter((text) => text.includes('"process_completed"'))) {
    const id = /"event_id": ?"(\w+)"/.exec(text)?.[1]; // quotes within what was answered are escaped
    if (id && !waiting.delete(id)) early.add(id);
  }
}
const withoutEnd = (events) =>
  events
    .split("\n\n")
    .filter((text) => text && !text.includes('"close_stream"'))
    .map((text) => `${text}\n\n`)
    .join("");

// The events of a session. Where they break off, or the server says of none in particular that it fails, Gradio is told
// that what was under way has failed and that they have ended; by itself it would wait for more.
function whole(response, again, signal) {
  const decoder = new TextDecoder(),
    encoder = new TextEncoder();
  let reader = response.body.getReader(),
    rest = "",
    last = "";
  async function pull(controller) {
    let part = { done: true };
    try {
      part = await reader.read();
    } catch (problem) {
      if (signal?.aborted) return controller.error(problem);
    }
    if (!part.done) {
      rest += decoder.decode(part.value, { stream: true });
      const end = rest.lastIndexOf("\n\n") + 2;
      if (end < 2) return pull(controller);
      last = rest.slice(0, end);
      rest = rest.slice(end);
      heed(last);
      if (waiting.size && !signal?.aborted && last.includes('"close_stream"')) {
        last = withoutEnd(last);
        if (last) controller.enqueue(encoder.encode(last));
        try {
          reader = (await again()).body.getReader();
        } catch {
          /* the old one has ended: told below */
        }
        return last ? undefined : pull(controller);
      }
      controller.enqueue(encoder.encode(last));
      if (!failsAltogether(last)) return;
      reader.cancel();
    }
    if (!signal?.aborted && !last.includes('"close_stream"')) {
      waiting.clear();
      for (const event of [{ msg: "unexpected_error", message: LOST, success: false }, { msg: "close_stream" }])
        controller.enqueue(encoder.encode(`data: ${JSON.stringify(event)}\n\n`));
      document.dispatchEvent(new CustomEvent("ins-lost"));
      back();
    }
    controller.close();
  }
  return new Response(new ReadableStream({ pull, cancel: (reason) => reader.cancel(reason) }), {
    status: response.status,
    headers: response.headers,
  });
}
function failsAltogether(events) {
  return events
    .split("\n\n")
    .filter((text) => text.includes('"unexpected_error"'))
    .map((text) => JSON.parse(text.replace(/^data:/, "")))
    .some((event) => event.msg === "unexpected_error" && !event.event_id);
}

window.fetch = async (input, options) => {
  const url = new URL(input.url ?? input, document.baseURI);
  if (url.origin !== location.origin) return send(input, options);
  const named = /[?&]session_hash=(\w+)/.exec(url.search);
  if (named) session = named[1];
  if (url.pathname.endsWith("/gradio_api/app_id")) throw new TypeError("The page stays."); // asked for to load it anew
  for (;;) {
    try {
      const response = await send(input, options);
      if (url.pathname.endsWith("/queue/join") && response.ok) await joined(response);
      const isEvents = url.pathname.endsWith("/queue/data") && response.ok;
      return isEvents ? whole(response, () => send(input, options), options?.signal ?? input.signal) : response;
    } catch (problem) {
      if (options?.signal?.aborted || !WAITS.test(url.pathname)) throw problem;
      await back();
    }
  }
};
window.addEventListener("offline", back);
