# Production image: the packages of the lockfile without those for development, the sources, no root.
FROM oven/bun:1.4.5-slim AS packages
WORKDIR /app
COPY package.json bun.lock ./
RUN bun install --frozen-lockfile --production

FROM oven/bun:1.4.5-slim
WORKDIR /app
ENV NODE_ENV=production
COPY --from=packages /app/node_modules ./node_modules
COPY package.json ./
COPY src ./src
# The certificate is put here at deployment; with NODE_ENV=production AMQP_URL must be set.
RUN mkdir certs && chown bun:bun certs
USER bun
EXPOSE 8443 8080
STOPSIGNAL SIGTERM
# As a list: the signal must reach the supervisor and no shell. A missing package is an error, never a download.
CMD ["bun", "--no-install", "src/main.ts"]
