# Production image: the packages of the lockfile without those for development, the sources, no root.
# It needs no writable file system: docker run --read-only. docs/DEPLOYING.md has an example.
ARG BASE=docker.io/oven/bun:1.4.5-slim

FROM ${BASE} AS packages
WORKDIR /app
COPY package.json bun.lock ./
RUN ["bun", "install", "--frozen-lockfile", "--production"]

FROM ${BASE}
LABEL org.opencontainers.image.title="Owsla" \
      org.opencontainers.image.description="A gateway between TLS devices and RabbitMQ" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/oven/bun:1.4.5-slim"
WORKDIR /app
ENV NODE_ENV=production
# The certificate is mounted here. Without one and with a writable folder a development certificate is made.
RUN ["install", "--directory", "--owner=1000", "--group=1000", "certs"]
COPY --from=packages /app/node_modules ./node_modules
COPY package.json LICENSE ./
COPY src ./src
# As numbers, so that Kubernetes can check runAsNonRoot: the user "bun" of the base image.
USER 1000:1000
EXPOSE 8443 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
  CMD ["bun", "--no-install", "src/main.ts", "health"]
# As lists: the signal must reach the supervisor and no shell. A missing package is an error, never a download. The command is one of
# main.ts, as in `docker run … owsla doctor`.
ENTRYPOINT ["bun", "--no-install", "src/main.ts"]
CMD ["start"]
