// Runs every method that the unmodified client has for what Hone offers: as it should be, and into each error. Fails
// for a method of a newer client that METHODS does not name. The last line of the output counts them, as JSON.
// Environment: OPENAI_BASE_URL, OPENAI_API_KEY, HONE_JOB (succeeded, checkpoints at 12 and 24), HONE_QUEUED (a job),
// HONE_MODEL (the first job's), HONE_BASE, HONE_PROJECT (to share models with), HONE_LIMITED_URL and HONE_LIMITED_KEY
// (a server of one request a minute). The servers may call this machine, and show paused jobs as they are.

import OpenAI, {
  APIError,
  AuthenticationError,
  InvalidWebhookSignatureError,
  NotFoundError,
  RateLimitError,
  toFile,
} from "openai";
import assert from "node:assert/strict";
import { createServer } from "node:http";

const { HONE_JOB: done, HONE_QUEUED: queued, HONE_MODEL: model, HONE_BASE: base, HONE_PROJECT: project } = process.env;
const { OPENAI_API_KEY: key, HONE_LIMITED_URL: limitedUrl, HONE_LIMITED_KEY: limitedKey } = process.env;
const client = new OpenAI({ adminAPIKey: key, maxRetries: 0 }); // sharing models asks for an admin key: the same
const rows = Array.from({ length: 12 }, (_, i) =>
  JSON.stringify({ messages: [{ role: "user", content: `${i}?` }, { role: "assistant", content: `${i}.` }] }),
).join("\n");
const grader = { type: "string_check", name: "c", input: "{{ sample.output_text }}", reference: "42", operation: "eq" };
const NEVER = "fine_tuning.job.failed";

async function collect(pages) {
  const found = [];
  for await (const item of pages) found.push(item);
  return found;
}

const received = [];
const receiver = createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => (body += piece));
  request.on("end", () => {
    received.push({ body, headers: request.headers });
    response.writeHead(204).end();
  });
});
await new Promise((resolve) => receiver.listen(0, "127.0.0.1", resolve));
const url = `http://127.0.0.1:${receiver.address().port}/`;

const rowsFile = async () => toFile(Buffer.from(rows), "train.jsonl");
const file = async (c) => c.files.create({ file: await rowsFile(), purpose: "fine-tune" });
const upload = (c, bytes = rows.length) =>
  c.uploads.create({ bytes, filename: "train.jsonl", mime_type: "text/jsonl", purpose: "fine-tune" });
const job = async (c, more = {}) =>
  c.fineTuning.jobs.create({ model: base, training_file: (await file(c)).id, ...more });
const endpoint = (c, to = url) => c.webhooks.create({ name: "a", url: to, event_types: [NEVER] });
const permission = async (c) =>
  (await c.fineTuning.checkpoints.permissions.create(model, { project_ids: [project] })).data[0];

async function completed(c) {
  const pending = await upload(c);
  const pieces = [rows.slice(0, 100), rows.slice(100)];
  const parts = await Promise.all(
    pieces.map(async (piece) => c.uploads.parts.create(pending.id, { data: await toFile(Buffer.from(piece), "part") })),
  );
  const whole = await c.uploads.complete(pending.id, { part_ids: parts.map((part) => part.id) });
  assert.deepEqual([whole.status, whole.file.bytes], ["completed", rows.length]);
  return whole;
}

async function cancelled(c) {
  const dropped = await c.uploads.cancel((await upload(c)).id);
  assert.equal(dropped.status, "cancelled");
  return dropped;
}

async function jobsAreListed(c) {
  const made = await job(c, { metadata: { from: "node" } });
  const without = await job(c, { metadata: null });
  const ids = async (query) => (await collect(c.fineTuning.jobs.list({ limit: 2, ...query }))).map((each) => each.id);
  assert.deepEqual((await ids({})).slice(0, 2), [without.id, made.id]);
  assert.deepEqual(await ids({ metadata: { from: "node" } }), [made.id]);
  const bare = await ids({ metadata: null });
  assert.ok(bare.includes(without.id) && !bare.includes(made.id));
  assert.ok((await ids({ after: null, limit: null })).includes(made.id));
}

async function eventsAreListedAndFollowed(c) {
  const made = await job(c);
  await c.fineTuning.jobs.cancel(made.id);
  const listed = (await collect(c.fineTuning.jobs.listEvents(made.id, { limit: 1 }))).map((event) => event.message);
  assert.equal(listed.at(-1), `Created fine-tuning job: ${made.id}`);
  const path = `/fine_tuning/jobs/${made.id}/events`; // the client has no method of its own for a stream of them
  const told = await collect(await c.get(path, { query: { stream: true }, stream: true }));
  assert.deepEqual(told.map((event) => event.message), listed.toReversed());
}

async function unwrapped(c, method) {
  const made = await endpoint(c);
  await c.webhooks.test(made.id, { event_type: NEVER });
  const { body, headers } = received.at(-1);
  const check = c.webhooks[method].bind(c.webhooks);
  const event = await check(body, headers, made.signing_secret);
  if (method === "unwrap") assert.equal(event.type, NEVER);
  await assert.rejects(check(`${body} `, headers, made.signing_secret), InvalidWebhookSignatureError);
  const other = await endpoint(c);
  await assert.rejects(check(body, headers, other.signing_secret), InvalidWebhookSignatureError);
  await assert.rejects(check(body, headers, made.signing_secret, -1), InvalidWebhookSignatureError); // too old
}

const equal = (what, wanted) => assert.deepEqual(what, wanted);
const METHODS = {
  "files.create": {
    works: async (c) => equal((await file(c)).status, "processed"),
    refused: async (c) => c.files.create({ file: await toFile(Buffer.from("no rows"), "a"), purpose: "fine-tune" }),
  },
  "files.retrieve": {
    works: async (c) => equal((await c.files.retrieve((await file(c)).id)).bytes, rows.length),
    missing: (c) => c.files.retrieve("file-none"),
  },
  "files.list": {
    works: async (c) => {
      const made = [(await file(c)).id, (await file(c)).id];
      const listed = await collect(c.files.list({ limit: 1, order: "desc" }));
      equal(listed.map((each) => each.id).slice(0, 2), made.reverse());
    },
    refused: (c) => c.files.list({ after: "file-none" }),
  },
  "files.delete": {
    works: async (c) => equal((await c.files.delete((await file(c)).id)).deleted, true),
    missing: (c) => c.files.delete("file-none"),
  },
  "files.content": {
    works: async (c) => equal(await (await c.files.content((await file(c)).id)).text(), rows),
    missing: (c) => c.files.content("file-none"),
  },
  "files.waitForProcessing": {
    works: async (c) => equal((await c.files.waitForProcessing((await file(c)).id)).status, "processed"),
    missing: (c) => c.files.waitForProcessing("file-none"),
  },
  "uploads.create": {
    works: async (c) => equal((await upload(c)).status, "pending"),
    refused: (c) => upload(c, -1),
  },
  "uploads.parts.create": {
    works: completed,
    missing: async (c) => c.uploads.parts.create("upload_none", { data: await rowsFile() }),
    refused: async (c) => c.uploads.parts.create((await cancelled(c)).id, { data: await rowsFile() }),
  },
  "uploads.complete": {
    works: completed,
    missing: (c) => c.uploads.complete("upload_none", { part_ids: ["part_none"] }),
    refused: async (c) => c.uploads.complete((await upload(c)).id, { part_ids: ["part_none"] }),
  },
  "uploads.cancel": {
    works: cancelled,
    missing: (c) => c.uploads.cancel("upload_none"),
    refused: async (c) => c.uploads.cancel((await completed(c)).id),
  },
  "fineTuning.jobs.create": {
    works: async (c) => {
      const method = { type: "dpo", dpo: { hyperparameters: { beta: 0.5, n_epochs: 1 } } };
      const made = await job(c, { method, suffix: "my model", seed: 7 });
      equal([made.status, made.method.type, made.seed], ["validating_files", "dpo", 7]);
    },
    refused: (c) => c.fineTuning.jobs.create({ model: "none", training_file: "file-none" }),
  },
  "fineTuning.jobs.retrieve": {
    works: async (c) => equal((await c.fineTuning.jobs.retrieve(done)).fine_tuned_model, model),
    missing: (c) => c.fineTuning.jobs.retrieve("ftjob-none"),
  },
  "fineTuning.jobs.list": { works: jobsAreListed, refused: (c) => c.fineTuning.jobs.list({ metadata: { "": "x" } }) },
  "fineTuning.jobs.cancel": {
    works: async (c) => equal((await c.fineTuning.jobs.cancel((await job(c)).id)).status, "cancelled"),
    missing: (c) => c.fineTuning.jobs.cancel("ftjob-none"),
    refused: (c) => c.fineTuning.jobs.cancel(done),
  },
  "fineTuning.jobs.pause": {
    works: async (c) => equal((await c.fineTuning.jobs.pause(queued)).status, "paused"),
    missing: (c) => c.fineTuning.jobs.pause("ftjob-none"),
    refused: (c) => c.fineTuning.jobs.pause(done),
  },
  "fineTuning.jobs.resume": {
    works: async (c) => {
      await c.fineTuning.jobs.pause(queued);
      equal((await c.fineTuning.jobs.resume(queued)).status, "queued");
    },
    missing: (c) => c.fineTuning.jobs.resume("ftjob-none"),
    refused: (c) => c.fineTuning.jobs.resume(done),
  },
  "fineTuning.jobs.listEvents": {
    works: eventsAreListedAndFollowed,
    missing: (c) => c.fineTuning.jobs.listEvents("ftjob-none"),
    refused: (c) => c.fineTuning.jobs.listEvents(done, { after: "ftevent-none" }),
  },
  "fineTuning.jobs.checkpoints.list": {
    works: async (c) => {
      const found = await collect(c.fineTuning.jobs.checkpoints.list(done, { limit: 1 }));
      equal(found.map((checkpoint) => checkpoint.step_number), [24, 12]);
    },
    missing: (c) => c.fineTuning.jobs.checkpoints.list("ftjob-none"),
    refused: (c) => c.fineTuning.jobs.checkpoints.list(done, { after: "ftckpt_none" }),
  },
  "fineTuning.checkpoints.permissions.create": {
    works: async (c) => equal((await permission(c)).project_id, project),
    missing: (c) => c.fineTuning.checkpoints.permissions.create("ft:none", { project_ids: [project] }),
    refused: (c) => c.fineTuning.checkpoints.permissions.create(model, { project_ids: ["proj_none"] }),
  },
  "fineTuning.checkpoints.permissions.list": {
    works: async (c) => {
      const made = await permission(c);
      const query = { limit: 1, order: "ascending", project_id: project };
      equal(await collect(c.fineTuning.checkpoints.permissions.list(model, query)), [made]);
    },
    missing: (c) => c.fineTuning.checkpoints.permissions.list("ft:none"),
    refused: (c) => c.fineTuning.checkpoints.permissions.list(model, { limit: -1 }),
  },
  "fineTuning.checkpoints.permissions.retrieve": {
    works: async (c) => {
      const made = await permission(c);
      equal((await c.fineTuning.checkpoints.permissions.retrieve(model)).last_id, made.id);
    },
    missing: (c) => c.fineTuning.checkpoints.permissions.retrieve("ft:none"),
    refused: (c) => c.fineTuning.checkpoints.permissions.retrieve(model, { limit: -1 }),
  },
  "fineTuning.checkpoints.permissions.delete": {
    works: async (c) => {
      const options = { fine_tuned_model_checkpoint: model };
      equal((await c.fineTuning.checkpoints.permissions.delete((await permission(c)).id, options)).deleted, true);
    },
    missing: (c) => c.fineTuning.checkpoints.permissions.delete("cp_none", { fine_tuned_model_checkpoint: model }),
  },
  "fineTuning.alpha.graders.run": {
    works: async (c) => equal((await c.fineTuning.alpha.graders.run({ grader, model_sample: "42" })).reward, 1),
    refused: (c) => c.fineTuning.alpha.graders.run({ grader: { ...grader, operation: "is" }, model_sample: "42" }),
  },
  "fineTuning.alpha.graders.validate": {
    works: async (c) => equal((await c.fineTuning.alpha.graders.validate({ grader })).grader, grader),
    refused: (c) => c.fineTuning.alpha.graders.validate({ grader: { ...grader, type: "none" } }),
  },
  "models.retrieve": {
    works: async (c) => equal((await c.models.retrieve(base)).id, base),
    missing: (c) => c.models.retrieve("ft:none"),
  },
  "models.list": { works: async (c) => assert.ok((await collect(c.models.list())).some((each) => each.id === base)) },
  "webhooks.create": {
    works: async (c) => assert.match((await endpoint(c)).signing_secret, /^whsec_/),
    refused: (c) => endpoint(c, "https://user:word@receiver.example/"),
  },
  "webhooks.retrieve": {
    works: async (c) => equal((await c.webhooks.retrieve((await endpoint(c)).id)).url, url),
    missing: (c) => c.webhooks.retrieve("we_none"),
  },
  "webhooks.update": {
    works: async (c) => equal((await c.webhooks.update((await endpoint(c)).id, { name: "b" })).name, "b"),
    missing: (c) => c.webhooks.update("we_none", { name: "b" }),
    refused: async (c) => c.webhooks.update((await endpoint(c)).id, { url: "ftp://receiver.example/" }),
  },
  "webhooks.list": {
    works: async (c) => {
      const made = [(await endpoint(c)).id, (await endpoint(c)).id];
      equal((await collect(c.webhooks.list({ limit: 1 }))).map((each) => each.id).slice(0, 2), made.reverse());
    },
    refused: (c) => c.webhooks.list({ after: "we_none" }),
  },
  "webhooks.delete": {
    works: async (c) => equal((await c.webhooks.delete((await endpoint(c)).id)).deleted, true),
    missing: (c) => c.webhooks.delete("we_none"),
  },
  "webhooks.rotateSecret": {
    works: async (c) => {
      const made = await endpoint(c);
      const rotated = await c.webhooks.rotateSecret(made.id, { keep_old_secret_active_for_24_hours: true });
      assert.notEqual(rotated.signing_secret, made.signing_secret);
    },
    missing: (c) => c.webhooks.rotateSecret("we_none"),
  },
  "webhooks.test": {
    works: async (c) => equal((await c.webhooks.test((await endpoint(c)).id, { event_type: NEVER })).status_code, 204),
    missing: (c) => c.webhooks.test("we_none", { event_type: NEVER }),
    refused: async (c) => c.webhooks.test((await endpoint(c, "http://127.0.0.1:9/")).id, { event_type: NEVER }),
  },
  "webhooks.eventTypes.list": {
    works: async (c) => assert.ok((await c.webhooks.eventTypes.list()).data.includes(NEVER)),
  },
  "webhooks.unwrap": { works: (c) => unwrapped(c, "unwrap") },
  "webhooks.verifySignature": { works: (c) => unwrapped(c, "verifySignature") },
  "models.delete": {
    works: async (c) => equal((await c.models.delete(model)).deleted, true), // last: the others need it
    missing: (c) => c.models.delete("ft:none"),
    refused: (c) => c.models.delete(base),
    status: 403,
  },
};

function* methodsOf(resource, path) {
  for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(resource)))
    if (name !== "constructor") yield `${path}.${name}`;
  for (const name of Object.keys(resource))
    if (!name.startsWith("_")) yield* methodsOf(resource[name], `${path}.${name}`);
}

const thereAre = ["files", "uploads", "fineTuning", "models", "webhooks"].flatMap((name) => [
  ...methodsOf(client[name], name),
]);
assert.deepEqual(thereAre.toSorted(), Object.keys(METHODS).toSorted());

const stranger = new OpenAI({ apiKey: "sk-hone-unknown-key", adminAPIKey: "sk-hone-unknown-key", maxRetries: 0 });
const limited = new OpenAI({ baseURL: limitedUrl, apiKey: limitedKey, adminAPIKey: limitedKey, maxRetries: 0 });
await limited.models.list();
for (const [name, { works, missing, refused, status = 400 }] of Object.entries(METHODS)) {
  const fails = (call, who, type, check) =>
    assert.rejects(
      async () => call(who),
      (error) => error instanceof type && /^req_/.test(error.requestID) && check(error),
      name,
    );
  await fails(works, stranger, AuthenticationError, (error) => error.code === "invalid_api_key");
  await fails(works, limited, RateLimitError, (error) => Number(error.headers.get("retry-after")) > 0);
  if (missing) await fails(missing, client, NotFoundError, (error) => error.param !== null);
  if (refused) {
    const counts = new Set(); // of the attempts before: a 409, say, would be tried again
    const watched = (to, init) => {
      counts.add(new Headers(init.headers).get("x-stainless-retry-count"));
      return fetch(to, init);
    };
    const patient = client.withOptions({ maxRetries: 2, fetch: watched });
    const said = (error) => error.status === status && error.type === "invalid_request_error";
    await fails(refused, patient, APIError, said);
    assert.deepEqual([...counts], ["0"]);
  }
  await works(client);
  for (const each of await collect(client.webhooks.list())) await client.webhooks.delete(each.id);
}
receiver.close();
receiver.closeAllConnections();
console.log(JSON.stringify({ methods: thereAre.length }));
