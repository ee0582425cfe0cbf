// Downloads a file with the unmodified client. Environment: OPENAI_BASE_URL, OPENAI_API_KEY, HONE_FILE.

import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const answer = await client.files.content(process.env.HONE_FILE);
console.log(JSON.stringify({ url: answer.url, text: await answer.text() }));
