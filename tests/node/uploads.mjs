// Sends a file in parts with the unmodified client; prints what became of it, as JSON.
// Environment: OPENAI_BASE_URL, OPENAI_API_KEY.

import OpenAI, { BadRequestError, NotFoundError, toFile } from "openai";
import assert from "node:assert/strict";
import { createHash } from "node:crypto";

const client = new OpenAI({ maxRetries: 0 });
const rows = Array.from({ length: 100 }, (_, i) => JSON.stringify({ prompt: `${i}?`, completion: `${i}.` }) + "\n");
const content = Buffer.from(rows.join(""));
const wanted = { bytes: content.length, filename: "train.jsonl", mime_type: "text/jsonl", purpose: "fine-tune" };

const upload = await client.uploads.create({ ...wanted, expires_after: { anchor: "created_at", seconds: 3600 } });
assert.equal(upload.status, "pending");
assert.equal(upload.expires_at, upload.created_at + 3600);
const middle = content.length >> 1;
const parts = await Promise.all(
  [content.subarray(middle), content.subarray(0, middle)].map(async (piece) =>
    client.uploads.parts.create(upload.id, { data: await toFile(piece, "part") }),
  ),
);
assert.equal(parts[0].object, "upload.part");
const ids = parts.map((part) => part.id).reverse();
const md5 = createHash("md5").update(content).digest("hex");
await assert.rejects(
  client.uploads.complete(upload.id, { part_ids: [...ids].reverse(), md5 }),
  (error) => error instanceof BadRequestError && error.param === "md5",
);
const done = await client.uploads.complete(upload.id, { part_ids: ids, md5 });
assert.equal(done.status, "completed");
assert.equal(done.file.expires_at, done.file.created_at + 3600);
assert.equal(await (await client.files.content(done.file.id)).text(), content.toString());

const dropped = await client.uploads.create(wanted);
assert.equal((await client.uploads.cancel(dropped.id)).status, "cancelled");
await assert.rejects(client.uploads.cancel("upload_unknown"), (error) => error instanceof NotFoundError);

console.log(JSON.stringify({ file: done.file.id }));
