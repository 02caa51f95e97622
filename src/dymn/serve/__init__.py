"""The HTTP service and its page (`dymn serve`): audio in, JSON out, with limits on everything that a client can send.

- settings: what is allowed; errors: what is refused, and how it is said;
- batching: one thread that computes, for windows of many requests at once;
- engine: who is let in, who decodes, what is answered;
- uploads: a request's body as a file; live: sound that arrives bit by bit;
- connections: deadlines below HTTP; guard: hosts, origins, tokens, headers;
- assets: the page's files; app: the routes; metrics: what is counted.
"""
