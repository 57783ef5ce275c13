// A provider for OmniHub in TypeScript: `node dist/provider.js 127.0.0.1:7002 omnihub.binpb`.
// It repeats what it is told. omnihub.binpb is the contract as one file; `make protos` writes it to gen/.

import { readFileSync } from "node:fs";
import * as grpc from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const [address = "127.0.0.1:7002", contract = "omnihub.binpb"] = process.argv.slice(2);
const PROVIDER = "sample-typescript";
const MODEL = "parrot";
// What this model cannot take: content is refused, wishes are dropped in the receipt.
const REFUSED = ["tools", "response_schema_json"];
const DROPPED = [
  ...["temperature", "top_p", "seed", "tool_choice", "parallel_tool_calls", "reasoning_effort"],
  ...["top_k", "user"],
];
const MEDIA = ["image", "audio", "video", "document"];

type Fields = Record<string, any>;
type Unary = grpc.ServerUnaryCall<Fields, Fields>;
type Answer = grpc.sendUnaryData<Fields>;
type Stream = grpc.ServerWritableStream<Fields, Fields>;

const loaded = grpc.loadPackageDefinition(
  // Absent fields stay absent, so that what the caller sent can be told from what it did not.
  protoLoader.loadFileDescriptorSetFromBuffer(readFileSync(contract), { keepCase: true, oneofs: true, enums: String }),
) as Fields;
const service = loaded.omnihub.provider.v1.ProviderService.service as grpc.ServiceDefinition;

// The parts of google.rpc that carry the details of an error.
const details = protobuf.parse(`syntax = "proto3"; package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message Violation { string field = 1; string description = 2; }
  message BadRequest { repeated Violation field_violations = 1; }`, { keepCase: true }).root;

function pack(name: string, fields: Fields): Fields {
  const type = details.lookupType(`google.rpc.${name}`);
  return { type_url: `type.googleapis.com/google.rpc.${name}`, value: type.encode(type.create(fields)).finish() };
}

/** An error as the contract wants it: ErrorInfo, and BadRequest for a wrong field. */
function failure(code: grpc.status, reason: string, message: string, field = "", about: Fields = {}): Fields {
  const found = [pack("ErrorInfo", { reason, domain: "omnihub", metadata: about })];
  if (field) found.push(pack("BadRequest", { field_violations: [{ field, description: message }] }));
  const metadata = new grpc.Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from(pack("Status", { code, message, details: found }).value));
  return { code, details: message, metadata };
}

/** Refuses a provider that is missing or not ours. */
function checkProvider(name = "", field = "provider"): void {
  if (!name) throw failure(grpc.status.INVALID_ARGUMENT, "INVALID_ARGUMENT", "name a provider", field);
  if (name !== PROVIDER) throw failure(grpc.status.NOT_FOUND, "NOT_FOUND", `there is only ${PROVIDER}`);
}

/** Refuses what cannot be answered, before anything is spent. Returns the receipt. */
function checkAttempt(attempt: Fields = {}): Fields[] {
  checkProvider(attempt.provider, "attempt.provider");
  const model: string = attempt.model ?? "";
  const about = { provider: PROVIDER, model, phase: "before_first_byte", retryable: "false" };
  if (!model) throw failure(grpc.status.INVALID_ARGUMENT, "INVALID_ARGUMENT", "name a model", "attempt.model", about);
  if (model !== MODEL) throw failure(grpc.status.NOT_FOUND, "MODEL_NOT_FOUND", `there is only ${MODEL}`, "", about);
  const chat: Fields = attempt.chat ?? {};
  const others = Object.keys(chat.extension_json ?? {});
  const sent = (name: string) => chat[name] !== undefined && !(Array.isArray(chat[name]) && !chat[name].length);
  const dropped = [...DROPPED.filter(sent), ...others];
  const parts: Fields[] = (chat.messages ?? []).flatMap((message: Fields) => message.parts ?? []);
  const media = parts.some((part) => MEDIA.includes(part.kind));
  const refused = [...REFUSED.filter(sent), ...(media ? ["messages"] : []), ...(attempt.strict ? dropped : [])];
  if (refused.length) {
    const message = `${MODEL} cannot take ${refused[0]}`;
    throw failure(grpc.status.INVALID_ARGUMENT, "PARAMETER_UNSUPPORTED", message, refused[0], about);
  }
  const heeded = ["max_tokens", "stop"].filter(sent);
  return [
    ...dropped.map((name) => ({ name, outcome: "dropped", detail: "a parrot has no use for it" })),
    ...heeded.map((name) => ({ name, outcome: "forwarded" })),
  ];
}

/** Returns words, finish and usage. A word is a token here. */
function answerTo(attempt: Fields): { words: string[]; finish: Fields; usage: Fields } {
  const chat: Fields = attempt.chat ?? {};
  const said: string[] = (chat.messages ?? []).map(
    (message: Fields) => message.content || (message.parts ?? []).map((part: Fields) => part.text?.text ?? "").join(" "),
  );
  let text = said.at(-1) ?? "";
  for (const stop of chat.stop ?? []) if (stop) text = text.split(stop)[0];
  const words = text.split(" ");
  const limit: number = chat.max_tokens || attempt.output_cap || words.length;
  const finish = { reason: words.length > limit ? "length" : "stop" };
  const read = said.reduce((sum, each) => sum + each.split(" ").length, 0);
  const output_total = Math.min(words.length, limit);
  return { words: words.slice(0, limit), finish, usage: { input_total: Math.max(1, read), output_total } };
}

/** Makes a method of a function that returns the answer or throws a failure. */
const unary = (work: (request: Fields) => Fields) => (call: Unary, respond: Answer) => {
  try {
    respond(null, work(call.request));
  } catch (error) {
    respond(error as grpc.ServiceError);
  }
};

function streamChat(call: Stream): void {
  try {
    const { attempt } = call.request;
    const receipt = checkAttempt(attempt);
    const { words, finish, usage } = answerTo(attempt);
    call.write({ start: { model: MODEL, receipt } });
    call.write({ part_start: { index: 0, part: { text: {} } } });
    for (const [number, word] of words.entries()) {
      // A caller who leaves: when "cancelled" is emitted, close the connection to your model.
      if (call.cancelled) return;
      call.write({ part_delta: { index: 0, text: number ? ` ${word}` : word } });
    }
    call.write({ part_stop: { index: 0 } });
    call.write({ end: { finish, usage } });
    call.end();
  } catch (error) {
    call.emit("error", error);
  }
}

// Requests hold images and long conversations; gRPC's own limit of 4 MiB is too small.
const size = 64 * 2 ** 20;
const server = new grpc.Server({ "grpc.max_receive_message_length": size, "grpc.max_send_message_length": size });
server.addService(service, {
  GetCapabilities: unary(() => ({
    // `synthetic`: rules, not a model. Leave it out when you speak to one.
    providers: [{ provider: PROVIDER, adapter: "sample", features: ["chat", "stream"], synthetic: true }],
  })),
  ListModels: unary(({ provider }) => (checkProvider(provider), { models: [{ model: MODEL, display_name: "Parrot" }] })),
  CheckHealth: unary(({ provider }) => (checkProvider(provider), { healthy: true })),
  Chat: unary(({ attempt }) => {
    const receipt = checkAttempt(attempt);
    const { words, finish, usage } = answerTo(attempt);
    return { message: { role: "assistant", content: words.join(" ") }, finish, usage, model: MODEL, receipt };
  }),
  StreamChat: streamChat,
});
server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  console.log(`${PROVIDER} listens on ${address}`);
});
