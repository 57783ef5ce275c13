// Connections stay open between requests: Node closes idle ones after 5 s, and a request that is sent at
// that very moment fails, which a test with no retries would see.
const http = require("node:http");
const { syncBuiltinESMExports } = require("node:module");

const create = http.createServer;
http.createServer = (...given) => Object.assign(create(...given), { keepAliveTimeout: 600_000 });
syncBuiltinESMExports();
