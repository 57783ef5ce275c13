"""The script that gives errors of transcoded calls their status and body.

gRPC has no 402, 410, 413 or 422 and its own error body, so our servers send status and body
ready-made in trailers (services/common/rpc/server.py). Two more kinds of error have no such trailers: what
gRPC itself says, and what the transcoder says of a request that does not fit the contract. What gRPC says
comes as a status without a body, or, once headers have been sent, as the transcoder's own body.
"""

from __future__ import annotations

from services.common.rpc.errors import TABLE, Row
from services.edge.replies import ERROR_BODY, HTTP_STATUS, REQUEST_ID

# What a gRPC status without our trailers means; every other one is INTERNAL.
BARE_CODES = {
    1: "CANCELLED",
    3: "MALFORMED_BODY",
    4: "DEADLINE_EXCEEDED",
    8: "BODY_TOO_LARGE",
    12: "NOT_IMPLEMENTED",
    14: "UNAVAILABLE",
}

# What gRPC says when a message is too large for it, and which way that message went.
TOO_LARGE = {
    "Received message larger than max": "BODY_TOO_LARGE",
    "Sent message larger than max": "ANSWER_TOO_LARGE",
}
# Under which name a route says to which field of the rpc it binds the whole body.
BODY_FIELD = "body_field"

_SCRIPT = r"""
local ROWS = {@ROWS@}
local BARE_CODES = {@BARE_CODES@}
local TOO_LARGE = {@TOO_LARGE@}
local KINDS = {
  TYPE_STRING = 'a string', TYPE_BOOL = 'true or false', TYPE_BYTES = 'base64', TYPE_ENUM = 'a known name',
  TYPE_DOUBLE = 'a number', TYPE_FLOAT = 'a number', TYPE_INT32 = 'a whole number',
  TYPE_UINT32 = 'a whole number that is not negative', TYPE_INT64 = 'a whole number',
  TYPE_UINT64 = 'a whole number that is not negative',
}

local function quote(text)
  return '"' .. text:gsub('[%c"\\]', function(character)
    return string.format('\\u%04x', character:byte())
  end) .. '"'
end

local function decode(text)
  return (text:gsub('%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end))
end

local function body_of(row, message, field, description, request_id)
  local details = '"recovery":' .. quote(row.recovery)
  if field then
    local violation = '{"field":' .. quote(field) .. ',"description":' .. quote(description) .. '}'
    details = details .. ',"fields":[' .. violation .. ']'
  end
  return '{"error":{"code":' .. row.http .. ',"reason":' .. quote(row.reason)
    .. ',"message":' .. quote(message) .. ',"details":{' .. details
    .. '},"request_id":' .. quote(request_id or '') .. '}}'
end

-- Returns row, message, field and description of what the transcoder says about a request. Values are left
-- out: they are the caller's.
local function refusal(text, body_field)
  local message = text:match('^:?%s*([^\n]*)'):gsub('[\128-\255]+', '?')
  -- Where the whole body is bound to one field of the rpc, its name is not the caller's.
  local prefix = (body_field or '') .. '.'
  if #prefix > 1 and message:sub(1, #prefix) == prefix then
    message = message:sub(#prefix + 1)
  end
  -- The one case in which the field's own name stands where the type should; its parent's may be before it.
  local alone = message:match('^invalid value Starting an object .* type ([%w_]+)$')
  if alone then
    return ROWS.INVALID_ARGUMENT, alone .. ': must not be an object', alone, 'must not be an object'
  end
  local parent, name = message:match('^([%w_%.%[%]]+): invalid value Starting an object .* type ([%w_]+)$')
  if parent then
    -- An element of a list is its own parent.
    local place = parent:match('([%w_]+)[%[%]%d]*$') == name and parent or parent .. '.' .. name
    return ROWS.INVALID_ARGUMENT, place .. ': must not be an object', place, 'must not be an object'
  end
  local field, kind = message:match('^([%w_%.%[%]]+): invalid value .* for type ([%w_%./]+)$')
  if field then
    local object = kind:find('/') and 'an object or a list of them'
    local description = 'must be ' .. (KINDS[kind] or object or 'of another type')
    return ROWS.INVALID_ARGUMENT, field .. ': ' .. description, field, description
  end
  -- Which field it is, the transcoder does not say, only what it belongs to.
  local owner = message:match('^(.-):?%s?Proto field is not repeating')
  if owner == '' or (owner and owner == body_field) then
    return ROWS.MALFORMED_BODY, 'the body is a list, or one of its fields holds a list, but takes one value'
  elseif owner then
    local description = 'one of its fields holds a list, but takes one value'
    return ROWS.INVALID_ARGUMENT, owner .. ': ' .. description, owner, description
  end
  field = message:match('^Could not find field "([^"]*)"')
  if field then
    return ROWS.INVALID_ARGUMENT, field .. ': unknown query parameter', field, 'unknown query parameter'
  end
  field = message:match('of the field (%S+) is conflicting')
  if field then
    local description = 'must be the same in path and body'
    return ROWS.INVALID_ARGUMENT, field .. ': ' .. description, field, description
  end
  return ROWS.MALFORMED_BODY, 'the request is not what this path takes: ' .. message
end

local function replace(handle, status, body)
  local length = handle:body(true):setBytes(body)
  -- Waiting for the body ends the life of what was read before.
  local headers = handle:headers()
  headers:replace(':status', status)
  headers:replace('content-type', 'application/json')
  headers:replace('content-length', tostring(length))
end

-- Returns row and message of what gRPC itself says.
local function bare(code, message)
  for text, row in pairs(TOO_LARGE) do
    if message:find(text, 1, true) then
      return row, row.message
    end
  end
  return BARE_CODES[code] or ROWS.INTERNAL, message
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get('@HTTP_STATUS@')
  local code = headers:get('grpc-status')
  local request_id = headers:get('@REQUEST_ID@')
  if status then
    local body = headers:get('@ERROR_BODY@')
    if body then
      replace(handle, status, body)
    end
  elseif code and code ~= '0' then
    local row, message = bare(code, decode(headers:get('grpc-message') or ''))
    replace(handle, row.http, body_of(row, message, nil, nil, request_id))
  elseif headers:get(':status') == '400' and headers:get('content-type') == 'text/plain' then
    local body_field = handle:metadata():get('@BODY_FIELD@')
    local text = handle:body(true)
    local row, message, field, description = refusal(text:getBytes(0, text:length()), body_field)
    replace(handle, row.http, body_of(row, message, field, description, request_id))
  elseif tonumber(headers:get(':status')) >= 400 and headers:get('content-type') == 'application/json' then
    local text = handle:body(true)
    local said, words = text:getBytes(0, text:length()):match('^{"code":(%d+),"message":"(.*)","details":')
    if said then
      local row, message = bare(said, words)
      replace(handle, row.http, body_of(row, message, nil, nil, request_id))
    end
  end
end
"""


_MESSAGES = {
    "BODY_TOO_LARGE": "the body is larger than a call of this platform takes; send less",
    "ANSWER_TOO_LARGE": "the answer is larger than a call of this platform takes",
}


def _row(row: Row) -> str:
    told = f"message=[==[{_MESSAGES.get(row.reason, '')}]==]"
    return f"{{http='{row.http}',reason=[==[{row.reason}]==],recovery=[==[{row.recovery}]==],{told}}}"


def status_script() -> str:
    """Return the script, in Lua."""
    reasons = {*BARE_CODES.values(), *TOO_LARGE.values(), "INVALID_ARGUMENT", "INTERNAL"}
    rows = ",".join(f"{reason}={_row(TABLE[reason])}" for reason in sorted(reasons))
    codes = ",".join(f"['{code}']={_row(TABLE[reason])}" for code, reason in BARE_CODES.items())
    too_large = ",".join(f"['{text}']={_row(TABLE[reason])}" for text, reason in TOO_LARGE.items())
    names = {
        "@ROWS@": rows,
        "@TOO_LARGE@": too_large,
        "@BODY_FIELD@": BODY_FIELD,
        "@BARE_CODES@": codes,
        "@HTTP_STATUS@": HTTP_STATUS,
        "@ERROR_BODY@": ERROR_BODY,
        "@REQUEST_ID@": REQUEST_ID,
    }
    script = _SCRIPT
    for name, value in names.items():
        script = script.replace(name, value)
    return script
