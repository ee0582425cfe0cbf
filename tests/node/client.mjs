// Drives a running server with the unmodified client; the last line of the output is what it saw, as JSON.
// Environment: OPENAI_BASE_URL, OPENAI_API_KEY, HONE_JOB (a succeeded job), HONE_MODEL (its model), HONE_BASE.

import OpenAI, { AuthenticationError, BadRequestError, NotFoundError, toFile } from "openai";
import assert from "node:assert/strict";

const { HONE_JOB: doneJob, HONE_MODEL: doneModel, HONE_BASE: base } = process.env;
const client = new OpenAI({ maxRetries: 0 });
const rows = Array.from({ length: 12 }, (_, i) =>
  JSON.stringify({ messages: [{ role: "user", content: `${i}?` }, { role: "assistant", content: `${i}.` }] }),
).join("\n");

async function collect(pages) {
  const found = [];
  for await (const item of pages) found.push(item);
  return found;
}

const file = await client.files.create({
  file: await toFile(Buffer.from(rows), "train.jsonl"),
  purpose: "fine-tune",
  expires_after: { anchor: "created_at", seconds: 3600 },
});
assert.equal(file.status, "processed");
assert.equal(file.expires_at, file.created_at + 3600);
assert.equal(await (await client.files.content(file.id)).text(), rows);
assert.deepEqual(await client.files.retrieve(file.id), file);
assert.ok((await collect(client.files.list({ limit: 1 }))).some((each) => each.id === file.id));

const job = await client.fineTuning.jobs.create({
  model: base,
  training_file: file.id,
  metadata: { from: "node" },
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2 } } },
});
assert.equal(job.status, "validating_files");
assert.deepEqual(job.hyperparameters, { n_epochs: 2, batch_size: "auto", learning_rate_multiplier: "auto" });
assert.deepEqual((await collect(client.fineTuning.jobs.list({ metadata: { from: "node" } }))).map((j) => j.id), [job.id]);
const events = await collect(client.fineTuning.jobs.listEvents(job.id, { limit: 1 }));
assert.deepEqual(events.map((event) => event.message), [
  `Validating training file: ${file.id}`,
  `Created fine-tuning job: ${job.id}`,
]);
assert.equal((await client.fineTuning.jobs.cancel(job.id)).status, "cancelled");
assert.equal((await client.fineTuning.jobs.retrieve(job.id)).status, "cancelled");

const done = await client.fineTuning.jobs.retrieve(doneJob);
assert.equal(done.fine_tuned_model, doneModel);
const checkpoints = await collect(client.fineTuning.jobs.checkpoints.list(doneJob, { limit: 1 }));
assert.deepEqual(checkpoints.map((checkpoint) => checkpoint.step_number), [24, 12]);
assert.match(await (await client.files.content(done.result_files[0])).text(), /^step,train_loss,/);

assert.equal((await client.models.retrieve(base)).id, base);
assert.ok((await collect(client.models.list())).some((model) => model.id === doneModel));
assert.equal((await client.models.delete(doneModel)).deleted, true);
assert.equal((await client.files.delete(file.id)).deleted, true);

await assert.rejects(client.fineTuning.jobs.retrieve("ftjob-unknown"), (error) => {
  assert.ok(error instanceof NotFoundError);
  assert.equal(error.code, "fine_tune_not_found");
  assert.equal(error.param, "fine_tune_id");
  assert.match(error.requestID, /^req_[0-9a-f]{32}$/);
  return true;
});
await assert.rejects(
  client.fineTuning.jobs.create({ model: "nothing", training_file: file.id }),
  (error) => error instanceof BadRequestError && error.code === "model_not_found",
);
await assert.rejects(
  new OpenAI({ apiKey: "sk-hone-unknown-key-wxyz", maxRetries: 0 }).models.list(),
  (error) => error instanceof AuthenticationError && error.code === "invalid_api_key",
);

console.log(JSON.stringify({ job: job.id }));
