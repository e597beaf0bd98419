"""An S3 store of this machine: enough of the protocol for listing, asking for a size, and reading ranges."""

from urllib.parse import parse_qs, urlsplit

from makers.web import Handler, serving

LISTING = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name><Prefix>{prefix}</Prefix>
<KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"""
ENTRY = """<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"{etag}"</ETag>
<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"""


class Store(Handler):
    """Answers a listing of `/bucket?list-type=2` out of the server's files, and the rest as a web server does."""

    def do_GET(self):
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        if "list-type" in query:
            self.list(asked.path.strip("/"), query.get("prefix", [""])[0])
        else:
            self.path = asked.path
            super().do_GET()

    def list(self, bucket, prefix):
        keys = {name.removeprefix(f"/{bucket}/"): body for name, body in self.server.web.files.items()}
        held = [
            ENTRY.format(key=key, etag=hash(body), size=len(body))
            for key, body in keys.items()
            if key.startswith(prefix)
        ]
        self.reply(LISTING.format(bucket=bucket, prefix=prefix, count=len(held), contents="".join(held)).encode())

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def storing(files, **settings):
    """`files`: /bucket/key -> bytes."""
    return serving(files, handler=Store, **settings)
