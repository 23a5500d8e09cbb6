import os

PID = str(os.getpid())


def app(environ, start_response):
    start_response("200 OK", [("X-Pid", PID), ("Content-Type", "text/plain"), ("Content-Length", "12")])
    return [b"Hello World\n"]
