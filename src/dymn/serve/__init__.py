"""The HTTP service and its page (`dymn serve`): audio in, JSON out, with limits on everything that a client can send.

- settings: the limits; errors: rejections and their messages;
- batching: one thread that computes windows of many requests at once;
- service: admission, decoding, responses; answers: tags and an embedding in one pass;
- uploads: a request's body as a file; live: audio over a WebSocket;
- connections: deadlines below HTTP; guard: hosts, origins, tokens, headers;
- assets: the page's files; app: the routes; metrics: counters.
"""
