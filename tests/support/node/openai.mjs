// Drives the official `openai` client: jobs as JSON on standard input, what came of them on standard output.
import { readFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";

const { url, key, jobs } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });

async function chat(body) {
  if (!body.stream) {
    const answer = await client.chat.completions.create(body);
    const choice = answer.choices[0];
    const calls = (choice.message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments]);
    return { text: choice.message.content ?? "", calls, finish: choice.finish_reason, usage: tokens(answer.usage) };
  }
  const seen = { text: "", calls: [], finish: null, usage: null };
  const wanted = { ...body, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create(wanted)) {
    if (chunk.usage) seen.usage = tokens(chunk.usage);
    for (const choice of chunk.choices) {
      seen.text += choice.delta.content ?? "";
      seen.finish = choice.finish_reason ?? seen.finish;
      for (const call of choice.delta.tool_calls ?? []) {
        seen.calls[call.index] ??= ["", ""];
        seen.calls[call.index][0] += call.function.name ?? "";
        seen.calls[call.index][1] += call.function.arguments ?? "";
      }
      if (choice.finish_reason) seen.cost = chunk.omnihub?.cost;
    }
  }
  return seen;
}

async function responses(body) {
  if (!body.stream) return response(await client.responses.create(body));
  const { stream: _, ...wanted } = body;
  const stream = client.responses.stream(wanted);
  const types = [];
  const sequence = [];
  let text = "";
  // What the client itself has put together.
  let snapshot = "";
  stream.on("response.output_text.delta", (event) => (snapshot = event.snapshot));
  for await (const event of stream) {
    types.push(event.type);
    sequence.push(event.sequence_number);
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  const final = await stream.finalResponse();
  return { ...response(final), text, snapshot, types, sequence, cost: final.omnihub?.cost };
}

function response(answer) {
  const calls = answer.output.filter((item) => item.type === "function_call");
  return {
    text: answer.output_text,
    calls: calls.map((call) => [call.name, call.arguments]),
    finish: answer.status,
    usage: answer.usage && [answer.usage.input_tokens, answer.usage.output_tokens],
  };
}

async function embeddings(body) {
  const made = await client.embeddings.create(body);
  return { vectors: made.data.map((each) => each.embedding), used: made.usage.prompt_tokens };
}

async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  return { models: names };
}

async function media({ picture, recording, model, models = {} }) {
  const of = (kind) => models[kind] ?? model;
  const file = (data, name, type) => toFile(Buffer.from(data, "base64"), name, { type });
  const made = await client.images.generate({ model: of("image"), prompt: "a boat", size: "32x16" });
  const image = await file(picture, "a.png", "image/png");
  const edited = await client.images.edit({ model: of("image"), image: [image, image], prompt: "blue" });
  const speech = await client.audio.speech.create({ model: of("speech"), voice: "nova", input: "Hello" });
  const audio = await file(recording, "a.wav", "audio/wav");
  const written = await client.audio.transcriptions.create({ model: of("transcription"), file: audio });
  let video = await client.videos.create({ model: of("video"), prompt: "a boat", seconds: "4", input_reference: image });
  while (!["completed", "failed"].includes(video.status)) video = await client.videos.retrieve(video.id);
  const content = await client.videos.downloadContent(video.id);
  const deleted = await client.videos.delete(video.id);
  return {
    made: made.data[0].b64_json,
    edited: edited.data.length,
    speech: Buffer.from(await speech.arrayBuffer()).toString("base64"),
    written: written.text,
    video: Buffer.from(await content.arrayBuffer()).toString("base64"),
    deleted: deleted.deleted,
  };
}

const tokens = (usage) => [usage.prompt_tokens, usage.completion_tokens];

async function run({ surface, body }) {
  try {
    return await { chat, responses, embeddings, models, media }[surface](body);
  } catch (error) {
    return { error: { kind: error.constructor.name, status: error.status ?? null, code: error.code ?? null, message: error.message } };
  }
}

process.stdout.write(JSON.stringify(await Promise.all(jobs.map(run))));
