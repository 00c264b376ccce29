// Talking to the server: the key of this tab, and one sentence for whatever goes wrong. A key that is
// not taken is the event `locked`.

export const get = (id) => document.getElementById(id);
export const hasKey = () => sessionStorage.getItem("key") !== null;

export async function ask(path, body) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const answer = await response.json().catch(() => ({}));
  const id = response.headers.get("X-Request-ID");
  if (response.ok) return { answer, timing: response.headers.get("Server-Timing") ?? "" };
  const error = Object.assign(new Error(sentence(answer, response.status)), answer, { status: response.status, request_id: id });
  if (error.status === 401) window.dispatchEvent(new CustomEvent("locked", { detail: error }));
  throw error;
}

// Our own errors have `error`, those of System One `detail`: a list of what is wrong, or an object.
function sentence({ error, detail }, status) {
  if (error) return error;
  if (Array.isArray(detail)) return detail.map(({ loc, msg }) => `${loc.slice(1).join(".")}: ${msg}`).join("; ");
  return detail?.message ?? `the server answered ${status}`;
}

export function complain(place, error) {
  place.hidden = !error;
  if (!error) return;
  const id = error.request_id ? ` (request ${error.request_id})` : "";
  place.textContent = (error.status ? error.message : "the server cannot be reached") + id;
}

// Sends a form from its fields, too, and takes no second one while the first is under way.
export function submits(form, button, status, send) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    status.textContent = "asking …";
    await send().finally(() => {
      status.textContent = "";
      button.disabled = false;
    });
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}
