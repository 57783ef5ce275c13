// Drives the official `@anthropic-ai/sdk` client: jobs as JSON on standard input, what came of them on standard output.
import { readFileSync } from "node:fs";
import Anthropic from "@anthropic-ai/sdk";

const { url, key, jobs } = JSON.parse(readFileSync(0, "utf8"));
const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });

async function messages({ stream, ...body }) {
  if (!stream) return message(await client.messages.create(body));
  const events = client.messages.stream(body);
  let text = "";
  events.on("text", (delta) => (text += delta));
  return { ...message(await events.finalMessage()), text };
}

function message(answer) {
  const texts = answer.content.filter((block) => block.type === "text").map((block) => block.text);
  const calls = answer.content.filter((block) => block.type === "tool_use");
  return {
    text: texts.join(""),
    calls: calls.map((call) => [call.name, JSON.stringify(call.input)]),
    finish: answer.stop_reason,
    usage: [answer.usage.input_tokens, answer.usage.output_tokens],
  };
}

const count = async (body) => ({ count: (await client.messages.countTokens(body)).input_tokens });

async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  return { models: names };
}

async function run({ surface, body }) {
  try {
    return await { messages, count, models }[surface](body);
  } catch (error) {
    const kind = error.error?.error?.type ?? null;
    return { error: { kind: error.constructor.name, status: error.status ?? null, code: kind, message: error.message } };
  }
}

process.stdout.write(JSON.stringify(await Promise.all(jobs.map(run))));
